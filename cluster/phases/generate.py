"""GENERATE: the teacher answers held-out problems, then the prompts; each shard is committed as it is done."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from cluster.context import RunContext
from cluster.models import teacher_source
from cluster.phases.plan import evaluation_uris, planned_rows
from cluster.session import LOOPBACK
from configs.errors import UserError
from configs.identity import generation_fingerprint
from configs.schema import AcceptanceConfig, EngineKind, EvaluationConfig, RunConfig, SamplingConfig, TruncationPolicy
from configs.table import RowStatus
from services.client import ClientSpec, TableJob
from services.dataset import pending_shards, read_ledger
from services.plan import read_plan

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
        engine = start_service(ctx)
        try:
            _stream(ctx, tables, tasks)
        except BaseException:
            stop_service(ctx)
            raise
    ledger = read_ledger(ctx.run_dir.completions_uri, planned_rows(ctx).num_rows)
    _show_ledger(ctx, ledger.to_dict())
    return {"ledger": ledger.to_dict(), "engine": engine}


def start_service(ctx: RunContext, *, http_port: int | None = None) -> dict[str, Any] | None:
    """Deploy the teacher and wait for its first replica.

    Returns the engine's resolved configuration; None for the OpenAI-compatible endpoint at ``http_port``.
    """
    session, config = ctx.session, ctx.config  # before Ray is imported: the session sets what Ray reads then
    device = session.device(config.teacher.engine.device, config.teacher.accelerator_type)
    http = http_port is not None
    ctx.progress.update(detail="loading Ray Serve")
    with ThreadPoolExecutor(max_workers=1) as beside:
        # Serve's controller starts while this process imports vLLM, each for seconds on a core of its own.
        started = beside.submit(_start_serve, http_port)
        from services import deployment

        started.result()
    model = teacher_source(config, ctx.run_dir)
    kind = EngineKind.ASYNC if http else deployment.engine_kind(config.teacher.engine, device)
    llm_config = deployment.build_llm_config(
        config.teacher, model.model, config.name, device, kind, config.generation.rows_per_call
    )
    deployment.start_teacher(llm_config, kind, app_name(ctx), http=http)
    handle = deployment.wait_until_ready(
        app_name(ctx),
        config.deadlines.replica_start,
        lambda message: ctx.progress.update(detail=f"waiting for the first teacher replica ({message})"),
    )
    ctx.progress.update(detail="")
    if http:
        return None
    description: dict[str, Any] = handle.describe.remote().result(timeout_s=config.deadlines.request)
    return description


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


def _stream(ctx: RunContext, tables: dict[str, TableJob], tasks: list[dict[str, Any]]) -> None:
    from services.pipeline import stream_shards

    plan = planned_rows(ctx)
    counts = read_ledger(ctx.run_dir.completions_uri, plan.num_rows).to_dict()
    tokens, started = 0, time.monotonic()
    ctx.progress.expect(plan.num_rows, "rows", plan.num_rows - counts["pending"])
    evaluation_left = sum(task["table"] == EVALUATION for task in tasks)
    for summary in stream_shards(_client_spec(ctx, tables), tasks, partial(_report_silence, ctx)):
        tokens += summary["completion_tokens"]
        if summary["table"] == EVALUATION:
            evaluation_left -= 1
            if evaluation_left == 0:
                _check_teacher(ctx)
            continue
        for status in RowStatus:
            counts[status] += summary[status]
            counts["pending"] -= summary[status]
        done = plan.num_rows - counts["pending"]
        ctx.progress.update(
            done=done,
            accepted=counts["accepted"],
            rejected=counts["rejected"],
            failed=counts["failed"],
            tokens_per_s=tokens / (time.monotonic() - started),
        )


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
