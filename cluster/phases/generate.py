"""GENERATE: the teachers answer held-out problems, then the prompts; each shard is committed as it is done."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.context import RunContext
from cluster.limits import check_teachers
from cluster.lineage import trace_tables
from cluster.models import teacher_source
from cluster.phases.plan import evaluation_uris, planned_rows
from cluster.pools import off_student_nodes
from cluster.run_estimate import TimeLeft
from cluster.teachers import (
    TeacherStarts,
    app_name,
    close_handles,
    describe_teachers,
    read_engine,
    start_teachers,
    stop_teachers,
    teacher_device,
)
from cluster.terms import decide
from configs.errors import UserError
from configs.identity import generation_fingerprint
from configs.schema import (
    AcceptanceConfig,
    EvaluationConfig,
    GenerationConfig,
    SamplingConfig,
    TeacherConfig,
    TruncationPolicy,
)
from configs.table import RowStatus
from configs.terms.records import Decision
from services.backlog import BacklogReporter
from services.client import ClientSpec, TableJob
from services.dataset import pending_shards, read_ledger, read_rows_by_teacher
from services.engine_settings import engine_kind
from services.plan import read_plan

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from services.pipeline import Feed

WINDOW_SLACK = 1.5  # a call enters as a whole: until so many rows are back, the engine lives on what is waiting
COMPLETIONS, EVALUATION = "completions", "evaluation"


class Speeds:
    """Completion tokens that each teacher has written, and the time since its first replica could answer."""

    def __init__(self) -> None:
        self._tokens, self._rows = Counter[str](), Counter[str]()
        self._started, self._last = dict[str, float](), dict[str, float]()

    def start(self, teacher: str) -> None:
        """Its first replica can answer."""
        self._started.setdefault(teacher, time.monotonic())

    def count(self, teacher: str, rows: int, tokens: int) -> None:
        """Rows of a shard that has been committed, and their completion tokens."""
        if tokens:
            self.start(teacher)  # a shard of a few rows may be there before anyone looked
            self._tokens[teacher] += tokens
            self._rows[teacher] += rows
            self._last[teacher] = time.monotonic()

    @property
    def seconds(self) -> float:
        """From the first teacher's start to the last shard so far."""
        return max(self._last.values()) - min(self._started.values()) if self._last else 0.0

    def row_tokens(self) -> dict[str, float]:
        """Mean completion tokens of a teacher's rows."""
        return {name: tokens / self._rows[name] for name, tokens in self._tokens.items()}

    def by_teacher(self) -> dict[str, float]:
        """Tokens/s of all replicas of a teacher, up to its last shard so far."""
        seconds = {name: last - self._started[name] for name, last in self._last.items()}
        return {name: self._tokens[name] / taken for name, taken in seconds.items() if taken > 0}


def generate(ctx: RunContext) -> dict[str, Any]:
    """Make every pending shard; without any, the phase is done as it is."""
    tables = _tables(ctx)
    tasks = _pending_tasks(ctx, tables)
    if not tasks and (record := ctx.run_dir.phase_record("generate")) is not None:
        return record
    return ctx.finish("generate", lambda: _generate(ctx, tables, tasks))


def teacher_accuracy(ctx: RunContext) -> float:
    """Share of the held-out problems that the teacher solved."""
    prompts_uri, teacher_uri = evaluation_uris(ctx)
    ledger = read_ledger(teacher_uri, read_plan(prompts_uri, 1).num_rows)
    return ledger.accepted / ledger.planned


def _tables(ctx: RunContext) -> dict[str, TableJob]:
    """Held-out problems first: a teacher that cannot solve them is not asked for anything else."""
    config, footer = ctx.config, {"stillhouse.generation_fingerprint": generation_fingerprint(ctx.config)}
    tables = {}
    if config.evaluation is not None:
        prompts_uri, teacher_uri = evaluation_uris(ctx)
        tables[EVALUATION] = TableJob(
            prompts_uri,
            teacher_uri,
            _greedy(config.evaluation),
            AcceptanceConfig(verifier=config.evaluation.verifier),
            footer,
        )
    tables[COMPLETIONS] = TableJob(
        ctx.run_dir.prompts_uri, ctx.run_dir.completions_uri, config.sampling, config.acceptance, footer
    )
    return tables


def _greedy(evaluation: EvaluationConfig) -> SamplingConfig:
    return SamplingConfig(temperature=0.0, max_tokens=evaluation.max_tokens, truncation=TruncationPolicy.KEEP)


def _pending_tasks(ctx: RunContext, tables: dict[str, TableJob]) -> dict[str, list[dict[str, Any]]]:
    """The shards that each teacher has yet to make, held-out problems first; teachers without any are left out."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for name, table in tables.items():
        for shard in pending_shards(table.prompts_uri, table.completions_uri):
            teacher = shard.teacher or ctx.config.main_teacher  # held-out problems name none
            tasks.setdefault(teacher, []).append({"table": name, "shard": shard.shard, "path": shard.path})
    return tasks


def _generate(ctx: RunContext, tables: dict[str, TableJob], tasks: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    engines, speeds = {}, Speeds()
    if tasks:
        ctx.budget.check()
        check_teachers(ctx.config, ctx.session, list(tasks))
        generation, pool = ctx.config.generation, ctx.config.pool
        windows = {name: generation.clients * window_rows(generation, pool[name]) for name in tasks}
        handles = start_teachers(ctx, windows)
        try:
            engines = _stream(ctx, handles, tables, tasks, speeds)
        except BaseException:
            stop_teachers(ctx.config, list(tasks))
            raise
        finally:
            close_handles(handles)
    ledger = read_ledger(ctx.run_dir.completions_uri, planned_rows(ctx).num_rows)
    _show_ledger(ctx, ledger.to_dict())
    engine = engines.get(ctx.config.main_teacher) or next(iter(engines.values()), None)
    devices = {name: teacher_device(ctx, name).value for name in tasks}
    return {
        "ledger": ledger.to_dict(),
        "engine": engine,
        "engines": engines,
        "devices": devices,
        "tokens_per_s": speeds.by_teacher(),
        "writing_s": round(speeds.seconds, 3),
    }


def _stream(
    ctx: RunContext,
    handles: dict[str, "DeploymentHandle"],
    tables: dict[str, TableJob],
    tasks: dict[str, list[dict[str, Any]]],
    speeds: Speeds,
) -> dict[str, dict[str, Any]]:
    """Make the shards; returns each teacher's engine as vLLM resolved it."""
    from services.pipeline import Feed, stream_shards

    engines: dict[str, dict[str, Any]] = {}
    starts = TeacherStarts(ctx, list(handles))
    backlogs: dict[str, BacklogReporter] = {}

    def is_loading() -> bool:
        for teacher in starts.look():
            speeds.start(teacher)
            engines[teacher] = read_engine(ctx, teacher, handles[teacher])
        return bool(starts.loading)

    def heard_at() -> float:
        return max(each.heard_at for each in backlogs.values())

    with ctx.terms_work("lineage"):
        decision = decide(ctx.config)
        traced = {teacher: _trace(ctx, tables, teacher, decision) for teacher in tasks}
    feeds = {teacher: Feed(_client_spec(ctx, traced[teacher], teacher), todo) for teacher, todo in tasks.items()}
    summaries = stream_shards(list(feeds.values()), partial(_report_silence, ctx, list(feeds)), is_loading, heard_at)
    with ExitStack() as reporters:
        for teacher, feed in feeds.items():
            reporter = BacklogReporter(handles[teacher], _rows_left(feed), ctx.config.pool[teacher].deadline)
            backlogs[teacher] = reporters.enter_context(reporter)
        _show_summaries(ctx, summaries, feeds, backlogs, speeds)
    is_loading()  # a run of a few rows may have ended between two looks
    return engines


def _trace(ctx: RunContext, tables: dict[str, TableJob], name: str, decision: Decision) -> dict[str, TableJob]:
    device = teacher_device(ctx, name)
    kind = engine_kind(ctx.config.pool[name].engine, device)
    return trace_tables(ctx.config, tables, name, decision, kind, device)


def _show_summaries(
    ctx: RunContext,
    summaries: Iterator[dict[str, Any]],
    feeds: dict[str, "Feed"],
    backlogs: dict[str, BacklogReporter],
    speeds: Speeds,
) -> None:
    """Take summaries of committed shards as they come, for the progress, the backlogs and the check of the teacher."""
    teachers = {(task["table"], task["shard"]): name for name, feed in feeds.items() for task in feed.tasks}
    evaluation_left = sum(table == EVALUATION for table, _ in teachers)
    plan = planned_rows(ctx)
    counts = read_ledger(ctx.run_dir.completions_uri, plan.num_rows).to_dict()
    by_teacher = read_rows_by_teacher(ctx.run_dir.completions_uri)
    left = TimeLeft(ctx)
    ctx.progress.expect(plan.num_rows, "rows", plan.num_rows - counts["pending"])
    for summary in summaries:
        teacher = teachers[summary["table"], summary["shard"]]
        speeds.count(teacher, sum(summary[status] for status in RowStatus), summary["completion_tokens"])
        backlogs[teacher].take_off(sum(summary[status] for status in RowStatus))
        if summary["table"] == EVALUATION:
            evaluation_left -= 1
            if evaluation_left == 0:
                _check_teacher(ctx)
            ctx.budget.check()
            continue
        for status in RowStatus:
            counts[status] += summary[status]
            counts["pending"] -= summary[status]
            by_teacher.setdefault(teacher, {state.value: 0 for state in RowStatus})[status] += summary[status]
        ctx.progress.update(
            done=plan.num_rows - counts["pending"],
            accepted=counts["accepted"],
            rejected=counts["rejected"],
            failed=counts["failed"],
            teacher_rows=by_teacher,
            tokens_per_s=sum(speeds.by_teacher().values()),
            cost_usd=ctx.budget.spent().usd,
            later_s=left.after("generate", speeds.row_tokens()),
        )
        if counts["pending"]:
            ctx.budget.check()


def _rows_left(feed: "Feed") -> int:
    """Rows of a teacher's pending shards, from the logs of what was planned."""
    shards = {(task["table"], task["shard"]) for task in feed.tasks}
    return sum(
        file.num_rows * table.sampling.n
        for name, table in feed.spec.tables.items()
        for file in pending_shards(table.prompts_uri, table.completions_uri)
        if (name, file.shard) in shards
    )


def _client_spec(ctx: RunContext, tables: dict[str, TableJob], name: str) -> ClientSpec:
    config, source = ctx.config, teacher_source(ctx.config, ctx.run_dir, name)
    teacher = config.pool[name]
    return ClientSpec(
        app_name=app_name(config, name),
        tables=tables,
        tokenizer=source.model,
        tokenizer_revision=source.revision,
        chat_template_kwargs=teacher.chat_template_kwargs,
        trust_remote_code=teacher.trust_remote_code,
        generation=config.generation,
        window_rows=window_rows(config.generation, teacher),
        request_deadline_s=config.deadlines.request,
        shard_deadline_s=config.deadlines.no_progress,
        commit_deadline_s=config.deadlines.commit,
        max_replicas=teacher.max_replicas,
        replica_start_s=config.deadlines.replica_start,
        teacher=name,
        node_labels=off_student_nodes(config),
    )


def window_rows(generation: GenerationConfig, teacher: TeacherConfig) -> int:
    """Rows each client keeps in flight: enough that every replica always has the next row waiting."""
    if generation.window_rows is not None:
        return generation.window_rows
    decoded = teacher.engine.max_num_seqs * teacher.max_replicas
    return max(1, round(WINDOW_SLACK * decoded / generation.clients))


def _check_teacher(ctx: RunContext) -> None:
    accuracy = teacher_accuracy(ctx)
    ctx.progress.say(f"generate: the teacher solves {accuracy:.1%} of the held-out problems")
    make = ctx.config.pool[ctx.config.main_teacher].make
    if make is not None and accuracy < make.min_accuracy:
        raise UserError(
            f"the home-made teacher solves {accuracy:.1%} of the held-out problems, less than "
            f"teacher.make.min_accuracy ({make.min_accuracy:.1%}); train it longer (teacher.make.training.max_steps)"
        )


def _report_silence(ctx: RunContext, teachers: list[str], silent_s: float, shards: int) -> None:
    """Long before the run gives up: what it waits for, and what Serve has to say of the teachers."""
    ctx.budget.check()
    words = describe_teachers(ctx.config, teachers)
    ctx.progress.say(
        f"generate: no row came back for {silent_s:.0f} s (at most {ctx.config.deadlines.no_progress:.0f} s, "
        f"deadlines.no_progress); {shards} wait for the teacher, of which Serve says: {words}"
    )


def _show_ledger(ctx: RunContext, ledger: dict[str, int]) -> None:
    parts = " + ".join(f"{ledger[key]:,} {key}" for key in ("accepted", "rejected", "failed", "pending"))
    ctx.progress.say(f"ledger: {ledger['planned']:,} planned = {parts}")
