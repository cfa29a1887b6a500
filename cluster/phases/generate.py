"""GENERATE: the teacher answers held-out problems, then the prompts; each shard is committed as it is done."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.context import RunContext
from cluster.models import teacher_source
from cluster.phases.plan import evaluation_uris, planned_rows
from cluster.session import LOOPBACK
from configs.errors import UserError
from configs.identity import generation_fingerprint
from configs.schema import AcceptanceConfig, EngineKind, EvaluationConfig, RunConfig, SamplingConfig, TruncationPolicy
from configs.table import RowStatus
from services.backlog import BacklogReporter
from services.client import ClientSpec, TableJob
from services.dataset import pending_shards, read_ledger
from services.engine_settings import engine_kind, find_differences
from services.plan import read_plan

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from services.deployment import TeacherApp

WINDOW_SLACK = 1.25  # calls are of many rows, and a call's rows all return before the next call takes their place
COMPLETIONS, EVALUATION = "completions", "evaluation"


def app_name(ctx: RunContext) -> str:
    """Name of the run's Serve application, so that runs on one cluster don't touch each other's."""
    return f"teacher-{ctx.config.name}"


def generate(ctx: RunContext) -> dict[str, Any]:
    """Make every pending shard; without any, the phase is done as it is."""
    tables = _tables(ctx)
    tasks = [
        {"table": name, "shard": shard.shard, "path": shard.path}
        for name, table in tables.items()
        for shard in pending_shards(table.prompts_uri, table.completions_uri)
    ]
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


def _generate(ctx: RunContext, tables: dict[str, TableJob], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    engine = None
    if tasks:
        teacher = _start_teacher(ctx)
        try:
            engine = _stream(ctx, teacher, tables, tasks)
        except BaseException:
            stop_service(ctx)
            raise
    ledger = read_ledger(ctx.run_dir.completions_uri, planned_rows(ctx).num_rows)
    _show_ledger(ctx, ledger.to_dict())
    return {"ledger": ledger.to_dict(), "engine": engine}


def start_http_service(ctx: RunContext, port: int) -> None:
    """Deploy the teacher behind the OpenAI-compatible endpoint at ``port``, and wait for its first replica."""
    app = _teacher_app(ctx, EngineKind.ASYNC)
    ctx.progress.update(detail="loading Ray Serve")
    with ThreadPoolExecutor(max_workers=1) as beside:
        # Serve's controller starts while this process imports vLLM, each for seconds on a core of its own.
        started = beside.submit(_start_serve, port)
        from services import llm_teacher  # noqa: F401

        started.result()
    from services.deployment import start_http_teacher

    start_http_teacher(app)
    _wait_for_teacher(ctx)


def _start_teacher(ctx: RunContext) -> "DeploymentHandle":
    """Deploy the teacher; its replicas load while its clients start."""
    app = _teacher_app(ctx)
    ctx.progress.update(detail="loading Ray Serve")
    _start_serve(None)
    from services.deployment import start_teacher

    return start_teacher(app)


def _teacher_app(ctx: RunContext, kind: EngineKind | None = None) -> "TeacherApp":
    session, config = ctx.session, ctx.config  # before Ray is imported: the session sets what Ray reads then
    from services.deployment import TeacherApp

    device = session.device(config.teacher.engine.device, config.teacher.accelerator_type)
    return TeacherApp(
        name=app_name(ctx),
        served_name=config.name,
        model=teacher_source(config, ctx.run_dir).model,
        teacher=config.teacher,
        device=device,
        kind=kind or engine_kind(config.teacher.engine, device),
    )


def _wait_for_teacher(ctx: RunContext) -> None:
    from services.deployment import wait_until_ready

    wait_until_ready(
        app_name(ctx),
        ctx.config.deadlines.replica_start,
        lambda message: ctx.progress.update(detail=f"waiting for the first teacher replica ({message})"),
    )
    ctx.progress.update(detail="")


def _start_serve(http_port: int | None) -> None:
    """Start Serve's controller; with a port also its HTTP proxy, on loopback."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # after its import, which sets it
    serve.start(
        proxy_location="Disabled" if http_port is None else "HeadOnly",
        http_options=None if http_port is None else {"host": LOOPBACK, "port": http_port},
        logging_config={"log_level": "WARNING"},
    )


def stop_service(ctx: RunContext) -> None:
    """Ask for the teacher's removal; HAND OVER waits for it."""
    from services.deployment import delete_teacher

    delete_teacher(app_name(ctx))


def _stream(
    ctx: RunContext, teacher: "DeploymentHandle", tables: dict[str, TableJob], tasks: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make the shards; returns the engine's configuration as vLLM resolved it."""
    from services.pipeline import stream_shards

    engine: dict[str, Any] = {}

    def wait_for_teacher() -> None:
        _wait_for_teacher(ctx)
        engine.update(teacher.describe.remote().result(timeout_s=ctx.config.deadlines.request))
        engine["differs"] = find_differences(ctx.config.teacher.engine, engine)
        _show_engine(ctx, engine)

    summaries = stream_shards(_client_spec(ctx, tables), tasks, partial(_report_silence, ctx), wait_for_teacher)
    with BacklogReporter(teacher, _rows_left(tables), ctx.config.teacher.deadline) as backlog:
        _show_summaries(ctx, summaries, backlog, sum(task["table"] == EVALUATION for task in tasks))
    return engine


def _show_engine(ctx: RunContext, engine: dict[str, Any]) -> None:
    shown = ", ".join(f"{key} {value}" for key, value in engine.items() if key not in ("engine", "differs"))
    ctx.progress.say(f"generate: teacher engine {engine['engine']}: {shown}")
    for sentence in engine["differs"]:
        ctx.progress.say(f"generate: {sentence}")


def _show_summaries(
    ctx: RunContext, summaries: Iterator[dict[str, Any]], backlog: BacklogReporter, evaluation_left: int
) -> None:
    """Take summaries of committed shards as they come, for the progress, the backlog and the check of the teacher."""
    plan = planned_rows(ctx)
    counts = read_ledger(ctx.run_dir.completions_uri, plan.num_rows).to_dict()
    tokens, started = 0, time.monotonic()
    ctx.progress.expect(plan.num_rows, "rows", plan.num_rows - counts["pending"])
    for summary in summaries:
        tokens += summary["completion_tokens"]
        backlog.take_off(sum(summary[status] for status in RowStatus))
        if summary["table"] == EVALUATION:
            evaluation_left -= 1
            if evaluation_left == 0:
                _check_teacher(ctx)
            continue
        for status in RowStatus:
            counts[status] += summary[status]
            counts["pending"] -= summary[status]
        ctx.progress.update(
            done=plan.num_rows - counts["pending"],
            accepted=counts["accepted"],
            rejected=counts["rejected"],
            failed=counts["failed"],
            tokens_per_s=tokens / (time.monotonic() - started),
        )


def _rows_left(tables: dict[str, TableJob]) -> int:
    ledgers = (
        read_ledger(table.completions_uri, read_plan(table.prompts_uri, table.sampling.n).num_rows)
        for table in tables.values()
    )
    return sum(ledger.pending for ledger in ledgers)


def _client_spec(ctx: RunContext, tables: dict[str, TableJob]) -> ClientSpec:
    config, source = ctx.config, teacher_source(ctx.config, ctx.run_dir)
    return ClientSpec(
        app_name=app_name(ctx),
        tables=tables,
        tokenizer=source.model,
        tokenizer_revision=source.revision,
        chat_template_kwargs=config.teacher.chat_template_kwargs,
        trust_remote_code=config.teacher.trust_remote_code,
        generation=config.generation,
        window_rows=window_rows(config),
        request_deadline_s=config.deadlines.request,
        shard_deadline_s=config.deadlines.no_progress,
        commit_deadline_s=config.deadlines.commit,
        replica_start_s=config.deadlines.replica_start,
    )


def window_rows(config: RunConfig) -> int:
    """Rows each client keeps in flight: enough that every replica always has the next row waiting."""
    if config.generation.window_rows is not None:
        return config.generation.window_rows
    decoded = config.teacher.engine.max_num_seqs * config.teacher.max_replicas
    return max(1, round(WINDOW_SLACK * decoded / config.generation.clients))


def _check_teacher(ctx: RunContext) -> None:
    accuracy = teacher_accuracy(ctx)
    ctx.progress.say(f"generate: the teacher solves {accuracy:.1%} of the held-out problems")
    make = ctx.config.teacher.make
    if make is not None and accuracy < make.min_accuracy:
        raise UserError(
            f"the home-made teacher solves {accuracy:.1%} of the held-out problems, less than "
            f"teacher.make.min_accuracy ({make.min_accuracy:.1%}); train it longer (teacher.make.training.max_steps)"
        )


def _report_silence(ctx: RunContext, silent_s: float, shards: int) -> None:
    """Long before the run gives up: what it waits for, and what Serve has to say of the teacher."""
    from services.deployment import describe_teacher

    ctx.progress.say(
        f"generate: no shard was finished for {silent_s:.0f} s (at most {ctx.config.deadlines.no_progress:.0f} s, "
        f"deadlines.no_progress); {shards} wait for the teacher, of which Serve says: {describe_teacher(app_name(ctx))}"
    )


def _show_ledger(ctx: RunContext, ledger: dict[str, int]) -> None:
    parts = " + ".join(f"{ledger[key]:,} {key}" for key in ("accepted", "rejected", "failed", "pending"))
    ctx.progress.say(f"ledger: {ledger['planned']:,} planned = {parts}")
