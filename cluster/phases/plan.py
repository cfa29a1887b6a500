"""PLAN: preflight, then prompts into immutable shards. Starts no cluster, no engine and no GPU."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import fsspec
from deltalake import DeltaTable

from cluster.context import RunContext
from cluster.preflight import check_models
from configs.errors import UserError
from configs.schema import EvaluationConfig, PromptsConfig
from configs.table import COMPLETIONS_SCHEMA
from services.plan import Plan, extend_plan, read_plan, read_shard
from services.prompts import HUB_PREFIX, Prompt, read_addition, read_prompts
from services.table import open_or_create, shard_files

EVALUATION_SHARD_PROMPTS = 256


def plan(ctx: RunContext) -> dict[str, Any]:
    """Plan what is not planned yet; a source that has not changed is not read again."""
    key = _source_key(ctx.config.prompts)
    record = ctx.run_dir.phase_record("plan")
    if record is not None and record["source_key"] == key:
        return record
    return ctx.finish("plan", lambda: {**_plan(ctx), "source_key": key})


def planned_rows(ctx: RunContext) -> Plan:
    """What has been planned so far."""
    return read_plan(ctx.run_dir.prompts_uri, ctx.config.sampling.n)


def evaluation_uris(ctx: RunContext) -> tuple[str, str]:
    """The tables of held-out prompts and of the teacher's answers to them."""
    return ctx.run_dir.uri("evaluation", "prompts"), ctx.run_dir.uri("evaluation", "teacher")


def _plan(ctx: RunContext) -> dict[str, Any]:
    config = ctx.config
    transfer = check_models(config, ctx.run_dir)
    made = extend_plan(
        ctx.run_dir.prompts_uri,
        read_prompts(config.prompts, tuple(config.teachers)),
        samples_per_prompt=config.sampling.n,
        shard_rows=config.generation.shard_rows,
        commit_deadline_s=config.deadlines.commit,
    )
    open_or_create(ctx.run_dir.completions_uri, COMPLETIONS_SCHEMA, "completions")
    ctx.progress.say(
        f"plan: {made.num_prompts:,} prompts x {config.sampling.n} = {made.num_rows:,} rows in {made.num_shards} shards"
        f" ({made.new_prompts:,} new, {made.duplicates:,} duplicates left out)"
    )
    record = {
        "prompts": made.num_prompts,
        "rows": made.num_rows,
        "shards": made.num_shards,
        "duplicates": made.duplicates,
        "transfer": transfer.value,
    }
    if config.evaluation is not None:
        record["evaluation_prompts"] = _plan_evaluation(ctx, config.evaluation)
    return record


def _plan_evaluation(ctx: RunContext, evaluation: EvaluationConfig) -> int:
    prompts_uri, teacher_uri = evaluation_uris(ctx)
    made = extend_plan(
        prompts_uri,
        held_out_prompts(evaluation, ctx.config.prompts),
        samples_per_prompt=1,
        shard_rows=EVALUATION_SHARD_PROMPTS,
        commit_deadline_s=ctx.config.deadlines.commit,
    )
    open_or_create(teacher_uri, COMPLETIONS_SCHEMA, "evaluation-teacher")
    held_out = set(_ids(prompts_uri))
    shared = sum(prompt_id in held_out for prompt_id in _ids(ctx.run_dir.prompts_uri))
    if shared:
        raise UserError(
            f"evaluation: {shared} of its {len(held_out)} problems are training prompts as well; "
            "take them out of prompts.source, or give evaluation problems of its own"
        )
    return made.num_prompts


def held_out_prompts(evaluation: EvaluationConfig, prompts: PromptsConfig) -> Iterator[Prompt]:
    """The evaluation's problems. Raises `UserError` when one has no answer."""
    if evaluation.addition is not None:
        return islice(read_addition(evaluation.addition, held_out=True), evaluation.limit)
    # The same columns as the prompts, and for the main teacher.
    changed = {"source": evaluation.source, "addition": None, "limit": evaluation.limit, "teacher_column": None}
    source = prompts.model_copy(update=changed | {"default_teacher": None})
    return (_needs_answer(prompt) for prompt in read_prompts(source))


def _needs_answer(prompt: Prompt) -> Prompt:
    if prompt.answer is None:
        raise UserError(f"evaluation.source: each problem needs an answer, and {prompt.prompt[:80]!r} has none")
    return prompt


def _ids(uri: str) -> Any:
    for file in shard_files(DeltaTable(uri)):
        yield from read_shard(uri, file.path).column("prompt_id").to_pylist()


def _source_key(prompts: PromptsConfig) -> str:
    """Changes when the source does, as far as its file system tells (size, time, etag), without reading it."""
    if prompts.source is None or prompts.source.startswith(HUB_PREFIX):
        return prompts.model_dump_json()
    filesystem, path = fsspec.url_to_fs(prompts.source)
    if not filesystem.exists(path):
        return prompts.model_dump_json()
    files = sorted(filesystem.find(path)) if filesystem.isdir(path) else [path]
    return prompts.model_dump_json() + "".join(str(filesystem.ukey(file)) for file in files)
