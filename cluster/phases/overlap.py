"""GENERATE and TRAIN side by side (``cluster.phases=overlapped``): the student learns from rows as they are committed.

The phases are those that are done in turn: the teacher's, up to HAND OVER, on this thread, the student's on one beside
it. What ends one side ends the other, the student with a checkpoint, so the same command goes on with both. A run whose
rows are all there has nothing left to overlap.
"""

import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.beside import Beside
from cluster.context import RunContext
from cluster.limits import check_both, check_student
from cluster.phases.generate import generate
from cluster.phases.hand_over import hand_over
from cluster.phases.plan import evaluation_uris, planned_rows
from cluster.phases.seal import seal_dataset
from cluster.phases.train import leave_out, student_job, train
from cluster.pools import check_side_by_side
from cluster.run_estimate import TimeLeft
from cluster.terms import gate_training
from cluster.training_run import run_training
from configs.errors import UserError
from services.dataset import pending_shards, read_ledger, read_lineage
from training.job import StepMetrics, TrainJob, TrainResult, Transfer
from training.output import load_result

TEACHER_PHASES = (generate, seal_dataset, hand_over)
LOOK_EVERY_S = 1.0
FIRST_STEP_SHARE = 0.15  # of the rows: a student that waits for more of them begins late


def generate_and_train(ctx: RunContext) -> dict[str, Any]:
    """Do GENERATE, SEAL, HAND OVER and TRAIN, in turn or side by side, as ``cluster.phases`` has it."""
    pending = pending_shards(ctx.run_dir.prompts_uri, ctx.run_dir.completions_uri)
    teachers = sorted({shard.teacher or ctx.config.main_teacher for shard in pending})
    if ctx.config.is_overlapped and teachers:
        _overlap(ctx, teachers)
    else:
        if teachers:  # before the teacher writes rows that no student could learn from here
            check_student(ctx.config, ctx.session)
        for phase in TEACHER_PHASES:
            phase(ctx)
    return train(ctx)  # after an overlap: holds what was learnt against the seal and today's terms


def _overlap(ctx: RunContext, teachers: list[str]) -> None:
    check_plan(ctx)
    check_side_by_side(ctx.config, ctx.session)
    check_both(ctx.config, ctx.session, teachers)
    # Ray's modules import each other in circles, of which two threads at once may see a half.
    import training.trainer  # noqa: F401

    started = time.time()
    with ctx.progress.beside() as progress:
        student = _Student(ctx.beside(progress))
        side = Beside(student.learn, ctx.config.deadlines.shutdown)

        def write() -> None:
            for phase in TEACHER_PHASES:
                phase(ctx)
            student.has_nodes.set()
            side.wait()

        side.run(write)
    if student.beside.first_step_at is not None:  # an earlier command may have taken all steps
        ctx.run_dir.write_json("phases/overlap.json", student.tell(started))


def check_plan(ctx: RunContext) -> None:
    """Refuse what only the plan tells, and say what makes the student begin late."""
    plan = ctx.run_dir.phase_record("plan") or {}
    if plan["transfer"] == Transfer.TEXT:
        raise UserError(
            "cluster.phases=overlapped: student and teacher have different tokenizers, and rows are not tokenised anew "
            "on their way; take a student with the teacher's tokenizer, or set cluster.phases=in_turn"
        )
    window, rows = ctx.config.training.packing_window_rows, plan["rows"]
    if window > FIRST_STEP_SHARE * rows:
        ctx.progress.say(
            f"train: the first step waits for training.packing_window_rows ({window:,}) of {rows:,} rows; with fewer "
            "the student begins sooner"
        )


def has_enough(ctx: RunContext) -> bool:
    """Whether the student would have something to do: its first window is full, or no row is pending.

    Held-out problems come before that: a teacher that cannot solve them is not learnt from.
    """
    if ctx.config.evaluation is not None and any(pending_shards(*evaluation_uris(ctx))):
        return False
    ledger = read_ledger(ctx.run_dir.completions_uri, planned_rows(ctx).num_rows)
    return ledger.pending == 0 or ledger.accepted >= ctx.config.training.packing_window_rows


def committed_so_far(ctx: RunContext) -> dict[str, Any]:
    """What a manifest would say of where the rows come from, before there is one of all of them."""
    sealed = ctx.run_dir.read_json("manifest.json") or {}  # of rows that were there before more were planned
    return {**sealed, "lineage": [each.to_dict() for each in read_lineage(ctx.run_dir.completions_uri)]}


@dataclass(slots=True)
class Pace:
    """How fast a group of workers is, from the lines of metrics that it has written."""

    asked_at: float = field(default_factory=time.time)
    """When it was asked for (seconds since 1970), as is the next."""
    first_step_at: float | None = None
    start_s: float = 0.0
    """From the demand until it could take a step."""
    busy_s: float = 0.0
    """Without waiting for rows."""
    steps: int = 0
    num_steps: int = 0
    last_step: int = 0

    def count(self, metrics: StepMetrics, log_every: int) -> None:
        """Take in a line; those of an earlier command or group do not count."""
        steps = metrics.step - self.last_step if self.last_step else metrics.step % log_every or log_every
        self.last_step, self.num_steps = metrics.step, metrics.num_steps
        if metrics.time < self.asked_at:
            return
        steps = max(1, steps)  # what an earlier group has taken since its checkpoint is taken again
        busy_s = metrics.seconds - metrics.data_wait_s
        if self.first_step_at is None:
            self.start_s = max(0.0, metrics.time - metrics.seconds - self.asked_at)
            self.first_step_at = metrics.time - busy_s * (steps - 1) / steps
        self.busy_s += busy_s
        self.steps += steps

    @property
    def left_s(self) -> float:
        """What the steps that are left would take this group."""
        return self.busy_s / max(1, self.steps) * (self.num_steps - self.last_step)


class _Student:
    """The student's side: its work, and how it went."""

    def __init__(self, ctx: RunContext) -> None:
        self._ctx, self._training = ctx, ctx.config.training
        self.has_nodes = threading.Event()
        """Set once the teacher has given its nodes back."""
        self.beside, self._after = Pace(), Pace()

    def learn(self, is_stopped: threading.Event) -> None:
        """TRAIN, from when there is enough to learn from; its record is there when all steps are taken."""
        while not has_enough(self._ctx):
            if is_stopped.wait(LOOK_EVERY_S):
                return
        from training.trainer import Stopped  # imports Ray Train

        ctx = self._ctx
        committed = committed_so_far(ctx)
        with ctx.terms_work("admit"):
            quarantined = gate_training(ctx.config, committed).quarantined
        job = student_job(ctx, committed)
        if ctx.run_dir.phase_record("train") is not None and load_result(job) is not None:
            return
        try:
            ctx.finish("train", lambda: {**self._train(job, is_stopped), "quarantined": leave_out(ctx, quarantined)})
        except Stopped:
            return

    def _train(self, job: TrainJob, is_stopped: threading.Event) -> dict[str, Any]:
        """With the fewest workers beside the teacher, and then with as many as there is room for."""
        from training.trainer import Stopped

        few, grown_s = self._training.min_workers, 0.0
        first = replace(job, training=self._training.model_copy(update={"num_workers": few}))
        self.beside = Pace()
        try:
            result = self._fit(first, self.beside, self._ctx.config.cluster.student_labels, is_stopped)
        except Stopped:
            if is_stopped.is_set():
                raise
            self._ctx.progress.say("train: the teacher has ended, and its nodes are the student's")
            self._after = Pace()
            result = self._fit(job, self._after, {}, is_stopped)
            grown_s = time.time() - self._after.asked_at
        return {"student": asdict(result), "grown_s": round(grown_s, 3)}

    def _fit(self, job: TrainJob, pace: Pace, labels: dict[str, str], is_stopped: threading.Event) -> TrainResult:
        [result] = run_training(
            self._ctx,
            [job],
            self._ctx.config.student.device,
            TimeLeft(self._ctx).after("train"),
            labels=labels,
            on_metrics=lambda metrics: pace.count(metrics, self._training.log_every),
            should_stop=lambda: is_stopped.is_set() or (pace is self.beside and self._would_gain()),
        )
        return result

    def _would_gain(self) -> bool:
        """Whether more workers would save more time than it takes to start them."""
        few, most = self._training.min_workers, self._training.max_workers
        return self.has_nodes.is_set() and self.beside.left_s * (1 - few / most) > self.beside.start_s

    def tell(self, started: float) -> dict[str, Any]:
        """What the report has of the overlap, which began at ``started``; docs/report.md documents each number."""
        low, high = self._training.min_workers, self._training.max_workers
        records = {name: self._ctx.run_dir.phase_record(name) for name in ("generate", "seal", "hand_over", "train")}
        seconds = {name: record["seconds"] for name, record in records.items() if record is not None}
        makespan_s = max(time.time() - started, seconds["train"])
        assert self.beside.first_step_at is not None
        alone_s = self.beside.start_s + self.beside.busy_s * low / high + self._after.busy_s
        numbers = {
            "makespan_s": makespan_s,
            "first_step_s": self.beside.first_step_at - started,
            "in_turn_s": sum(seconds.values()) - seconds["train"] + alone_s,
            "split_s": makespan_s - self._after.start_s + self._after.busy_s * (high / low - 1),
            "generate_s": seconds["generate"],
            "train_s": seconds["train"],
        }
        return {name: round(value, 3) for name, value in numbers.items()}
