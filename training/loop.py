"""The training loop: one plain function over torch, the same in one process, under torchrun and under Ray Train.

It resumes by itself from the newest checkpoint in the job's output directory, so running a job again is how to go on.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from configs.errors import UserError
from training import storage
from training.batches import MicroBatch, iterate_steps
from training.checkpoint import CheckpointStore, Progress
from training.corpus import Corpus
from training.export import export_student
from training.flops import count_flops, peak_flops
from training.job import StepMetrics, TrainJob, TrainResult
from training.lora import is_quantized, merge_adapters, merge_into_original, save_adapters
from training.loss import StudentWithLoss
from training.metrics import MetricsLog, RateWindow, peak_memory_mib
from training.output import claim_output_dir, write_learnt_files, write_result
from training.parallel import World, clip_gradients
from training.plan import EpochPlan
from training.preemption import Preempted, StopAgreement
from training.rows import GrowingRows, Part
from training.schedule import learning_rate
from training.setup import Setup, prepare
from training.trackers import check_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step to take: its number in the job and in its epoch, and this rank's data; the rest is over all ranks."""

    number: int
    epoch: int
    in_epoch: int
    part: Part
    tokens: int
    loss_tokens: int
    lengths: npt.NDArray[np.int32]
    micro_batches: list[MicroBatch]


def train(
    job: TrainJob,
    on_step: Callable[[StepMetrics], None],
    world: World,
    is_noticed: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train, checkpoint and export the job's student; every rank calls it and gets the same result.

    ``on_step`` is called on rank 0 with each line of metrics, ``is_noticed`` on every rank at each step: once it says
    on any of them that its machine will be taken away, all save a checkpoint and raise Preempted. A finished job
    returns at once, an interrupted one goes on with the same losses. UserError for what the user can mend, a step
    whose gradient is not finite among it.
    """
    started = time.monotonic()
    world = world.grouped(job.training.tensor_parallel_size)
    finished: TrainResult | None = None
    with world.agreement():
        if world.rank == 0:
            check_trackers(job.training.trackers)
            finished = claim_output_dir(job)
    finished = world.broadcast(finished)
    if finished is not None:
        return finished
    setup = prepare(job, world)
    config = job.training
    with (
        CheckpointStore(job.output_dir, config.keep_checkpoints, world, config.async_checkpoint) as checkpoints,
        StopAgreement(is_noticed, world) as stop,
    ):
        progress = checkpoints.load_newest(setup.student, setup.optimizer) or Progress()
        log = None
        with world.agreement():
            if world.rank == 0:
                logger.info(
                    "%s: at step %d of %d with %d workers", job.name, progress.step, setup.num_steps, world.size
                )
                log = MetricsLog(job, progress.step)
        with log or nullcontext():
            progress = _take_steps(setup, progress, checkpoints, stop, log, on_step)
    return _finish(setup, progress, started)


def _take_steps(
    setup: Setup,
    progress: Progress,
    checkpoints: CheckpointStore,
    stop: StopAgreement,
    log: MetricsLog | None,
    on_step: Callable[[StepMetrics], None],
) -> Progress:
    """Take the steps left after ``progress``; return where the job stands then, its end."""
    job, world, window = setup.job, setup.world, RateWindow()
    flops = count_flops(setup.student.model)
    for step in _iterate_steps_from(setup, progress, window):
        stop.ask()
        if step is None:  # the teacher has yet to write what is learnt next
            if stop.is_agreed():
                checkpoints.save(setup.student, setup.optimizer, progress, is_urgent=True)
                raise Preempted(progress.step, setup.num_steps)
            continue
        loss_sum, grad_norm = _take_step(setup, step)
        window.add(step.tokens, step.loss_tokens, flops.of_step(step.lengths, step.loss_tokens))
        progress = replace(
            progress,
            step=step.number + 1,
            epoch=step.epoch,
            step_in_epoch=step.in_epoch + 1,
            loss_tokens=progress.loss_tokens + step.loss_tokens,
        )
        is_due = _due(setup, progress.step)
        evaluation_loss = None
        if step.part.evaluation is not None and is_due(job.training.evaluate_every):
            evaluation_loss = _evaluate(setup, step.part.corpus, step.part.evaluation)
            progress = replace(progress, evaluation_loss=evaluation_loss)
        if is_due(job.training.log_every) or evaluation_loss is not None:
            progress = replace(progress, loss=world.sum(loss_sum).item() / step.loss_tokens)
            metrics = _describe(setup, step, progress, window, grad_norm, evaluation_loss)
            if log is not None:
                log.append(metrics)
                on_step(metrics)
        is_stopping = stop.is_agreed() and progress.step < setup.num_steps
        if is_stopping or is_due(job.training.checkpoint_every):
            with window.blocked():
                checkpoints.save(setup.student, setup.optimizer, progress, is_urgent=is_stopping)
        if is_stopping:
            raise Preempted(progress.step, setup.num_steps)
    return progress


def _due(setup: Setup, done: int) -> Callable[[int], bool]:
    """Return the test whether what happens every so many steps is due after ``done`` steps; all is due at the end."""
    return lambda every: done == setup.num_steps or done % every == 0


def _iterate_steps_from(setup: Setup, progress: Progress, window: RateWindow) -> Iterator[_Step | None]:
    """Yield the steps left after ``progress``, epoch by epoch, and None now and then while their rows are awaited."""
    number, epoch, first = progress.step, progress.epoch, progress.step_in_epoch
    while number < setup.num_steps:
        num_planned = 0  # steps of the epoch in the parts so far
        for part in window.waiting_for(setup.rows.parts(epoch)):
            if part is None:
                yield None
                continue
            for i, micro_batches in _iterate_batches(setup, part, max(0, first - num_planned), window):
                yield _Step(
                    number=number,
                    epoch=epoch,
                    in_epoch=num_planned + i,
                    part=part,
                    tokens=int(part.plan.step_tokens[i]),
                    loss_tokens=int(part.plan.step_loss_tokens[i]),
                    lengths=part.corpus.lengths[part.plan.step_rows(i)],
                    micro_batches=micro_batches,
                )
                number += 1
                if number == setup.num_steps:
                    return
            num_planned += part.plan.num_steps
        epoch, first = epoch + 1, 0


def _iterate_batches(
    setup: Setup, part: Part, first: int, window: RateWindow
) -> Iterator[tuple[int, list[MicroBatch]]]:
    """Yield the steps of a part from ``first`` on, with this rank's data of each."""
    if first < part.plan.num_steps:
        batches = iterate_steps(part.corpus, part.plan, setup.job.training, setup.world, setup.pad_id, first)
        with closing(batches):
            yield from enumerate(window.waiting_for(batches), first)


def _take_step(setup: Setup, step: _Step) -> tuple[torch.Tensor, float]:
    """Take one optimiser step; return this rank's summed loss and the global gradient norm before clipping."""
    config, world, optimizer = setup.job.training, setup.world, setup.optimizer
    # Dropout's randomness follows from the step, so a resumed run draws the same without any state to keep.
    torch.manual_seed(int(np.random.SeedSequence([config.seed, step.number, world.data_rank]).generate_state(1)[0]))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step.number, setup.num_steps, config.optimizer)
    loss_sum = torch.zeros((), device=world.device)
    for micro_batch in step.micro_batches:
        loss = setup.student(*micro_batch.to(world.device).tensors())
        # FSDP2 averages gradients over the groups; the loss is a mean over the tokens of all of them.
        (loss * (world.data_size / step.loss_tokens)).backward()
        loss_sum += loss.detach()
    grad_norm = clip_gradients(setup.student, config.optimizer.max_grad_norm)
    if not math.isfinite(grad_norm):
        raise UserError(
            f"the gradient of step {step.number + 1} is not finite ({grad_norm}); lower "
            "training.optimizer.learning_rate or raise training.optimizer.warmup_ratio"
        )
    optimizer.step()
    optimizer.zero_grad()
    return loss_sum, grad_norm


def _evaluate(setup: Setup, corpus: Corpus, plan: EpochPlan) -> float:
    """Return the mean loss of the held-back rows (nats)."""
    total = torch.zeros((), device=setup.world.device)
    setup.student.eval()
    with torch.no_grad():
        for step in iterate_steps(corpus, plan, setup.job.training, setup.world, setup.pad_id):
            for micro_batch in step:
                total += setup.student(*micro_batch.to(setup.world.device).tensors())
    setup.student.train()
    return setup.world.sum(total).item() / int(plan.step_loss_tokens.sum())


def _describe(
    setup: Setup, step: _Step, progress: Progress, window: RateWindow, grad_norm: float, evaluation_loss: float | None
) -> StepMetrics:
    rates, config = window.close(), setup.job.training
    peak = peak_flops(setup.world.device, config.dtype)
    return StepMetrics(
        step=progress.step,
        num_steps=setup.num_steps,
        epoch=step.epoch,
        loss=progress.loss,
        learning_rate=setup.optimizer.param_groups[0]["lr"],
        grad_norm=grad_norm,
        loss_tokens=progress.loss_tokens,
        tokens_per_s=rates.tokens / rates.seconds,
        loss_tokens_per_s=rates.loss_tokens / rates.seconds,
        seconds=rates.seconds,
        data_wait_s=rates.data_wait_s,
        checkpoint_blocked_s=rates.checkpoint_blocked_s,
        peak_memory_mib=peak_memory_mib(setup.world.device),
        time=time.time(),
        mfu=None if peak is None else rates.flops / rates.seconds / (peak * setup.world.size),
        evaluation_loss=evaluation_loss,
    )


def _finish(setup: Setup, progress: Progress, started: float) -> TrainResult:
    hf_dir = _export(setup)
    rows = setup.rows
    result = TrainResult(
        num_steps=progress.step,
        loss_tokens=progress.loss_tokens,
        final_loss=progress.loss,
        evaluation_loss=progress.evaluation_loss,
        rows=int(rows.corpus.is_training.sum()),
        evaluation_rows=int(rows.corpus.is_evaluation.sum()),
        overlong_dropped=rows.corpus.overlong_dropped,
        packing_fill=rows.fill,
        seconds=time.monotonic() - started,
        hf_dir=hf_dir,
    )
    if setup.world.rank == 0:
        if isinstance(rows, GrowingRows):
            write_learnt_files(setup.job, rows.files)
        write_result(setup.job, result)
    setup.world.barrier()
    return result


def _export(setup: Setup) -> str:
    """Write the finished student, and the adapters that it was made with; return its directory."""
    student, tokenizer, job, world = setup.student, setup.tokenizer, setup.job, setup.world
    if job.lora is None:
        return export_student(student, tokenizer, job, world)
    save_adapters(student.model, job, world)
    if not is_quantized(job):
        merge_adapters(student.model)
        return export_student(student, tokenizer, job, world)
    original = merge_into_original(student.model, job, tokenizer, world)
    if original is not None:
        export_student(StudentWithLoss(original), tokenizer, job, World(0, 1, torch.device("cpu")))
    world.barrier()
    return storage.join(job.output_dir, "hf")
