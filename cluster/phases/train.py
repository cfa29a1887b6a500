"""TRAIN: the student on the sealed rows, and beside it a control student on their final answers alone.

With overlapped phases the student learns in the order of the commits, beside the teacher (`cluster.phases.overlap`) or,
where all rows are there by now, here.
"""

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from cluster.admission import Quarantined, admit
from cluster.binding import bind_student
from cluster.context import RunContext
from cluster.models import student_tokenizer, teacher_source
from cluster.run_estimate import TimeLeft
from cluster.terms import gate_training, recorded_sources, refusal
from cluster.training_run import run_training
from configs.errors import UserError
from configs.schema import ObjectiveConfig, TrainingConfig
from configs.table import TOKEN_IDS, RowStatus
from configs.terms.policy import load_policy
from services.verifiers import final_answer
from training.job import Commits, DataFile, TrainJob, Transfer
from training.output import load_result, read_learnt_files
from training.quarantine import Exclusions, iterate_kept

BATCH_ROWS = 1024  # of a shard, read at a time
CONTROL_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("status", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("prompt_token_ids", TOKEN_IDS),
        ("completion_token_ids", TOKEN_IDS),
    ]
)


def train(ctx: RunContext) -> dict[str, Any]:
    """Train the student, and the control student where the recipe asks for one, in the same workers."""
    manifest = _sealed(ctx)
    jobs = {"student": student_job(ctx, manifest)}
    with ctx.terms_work("admit"):
        quarantined = gate_training(ctx.config, manifest).quarantined
    _check_learnt(jobs["student"], manifest)
    if ctx.config.student.control:
        jobs["control"] = control_job(ctx)
    record = ctx.run_dir.phase_record("train")
    if record is not None and all(load_result(job) is not None for job in jobs.values()):
        return record

    def work() -> dict[str, Any]:
        left_out = leave_out(ctx, quarantined)
        later_s = TimeLeft(ctx).after("train")
        results = run_training(ctx, list(jobs.values()), ctx.config.student.device, later_s)
        return {name: asdict(result) for name, result in zip(jobs, results, strict=True)} | {"quarantined": left_out}

    return ctx.finish("train", work)


def leave_out(ctx: RunContext, quarantined: tuple[Quarantined, ...]) -> list[dict[str, Any]]:
    """Say which rows are not learnt from, and return what the phase's record has of it."""
    for each in quarantined:
        ctx.progress.say(
            f"terms: {each.accepted:,} accepted rows are left out of training: {refusal(each.finding, load_policy())}"
        )
    return [{**each.lineage, "accepted": each.accepted} for each in quarantined]


def student_job(ctx: RunContext, manifest: dict[str, Any] | None = None) -> TrainJob:
    """The job on the sealed version. Its directory is named by all that decides what is learnt.

    Rows that are not allowed any more are left out of it, so a student that learnt from them is another job's. With
    overlapped phases its rows are those of the table, in the order of the commits; while that grows, ``manifest`` is
    what `cluster.phases.overlap` knows of it.
    """
    manifest = manifest or _sealed(ctx)
    excluded = _excluded(ctx, manifest)
    if ctx.config.is_overlapped:
        return _job(ctx, "student", (), ctx.config.training, excluded, _commits(ctx))
    files = tuple(
        DataFile(ctx.run_dir.uri("completions", file["path"]), file["num_rows"], file["sha256"])
        for file in manifest["files"]
    )
    return _job(ctx, "student", files, ctx.config.training, excluded)


def _sealed(ctx: RunContext) -> dict[str, Any]:
    manifest: dict[str, Any] | None = ctx.run_dir.read_json("manifest.json")
    if manifest is None:
        raise UserError(
            f"{ctx.run_dir.root} has no sealed data yet; run `stillhouse generate` with the same recipe first"
        )
    return manifest


def _commits(ctx: RunContext) -> Commits:
    """The table as it will be; a teacher that has to start first has its own deadline to do so."""
    uri, deadlines = ctx.run_dir.completions_uri, ctx.config.deadlines
    table_id, num_files = str(DeltaTable(uri).metadata().id), (ctx.run_dir.phase_record("plan") or {})["shards"]
    return Commits(uri, table_id, num_files, deadlines.replica_start + deadlines.no_progress)


def _check_learnt(job: TrainJob, manifest: dict[str, Any]) -> None:
    """Hold what a student read while the table grew against what was sealed afterwards."""
    sealed = {file["sha256"] for file in manifest["files"]}
    strange = [file.path for file in read_learnt_files(job) if file.sha256 not in sealed]
    if strange:
        raise UserError(
            f"the student has learnt from {strange[0]}, which is not among the sealed files; remove {job.output_dir} "
            "and give the command again"
        )


def control_job(ctx: RunContext) -> TrainJob:
    """The same budget spent on final answers: as many steps of as many sequences."""
    # Cross-entropy alone: answers have no log-probabilities of a teacher.
    training = ctx.config.training.model_copy(update={"objective": ObjectiveConfig()})
    return _job(ctx, "control", (_write_answers(ctx),), training)


def _excluded(ctx: RunContext, manifest: dict[str, Any]) -> Exclusions:
    with ctx.terms_work("admit"):
        return admit(ctx.config, manifest, recorded_sources(manifest), load_policy()).excluded


def _job(
    ctx: RunContext,
    name: str,
    files: tuple[DataFile, ...],
    training: TrainingConfig,
    excluded: Exclusions = (),
    commits: Commits | None = None,
) -> TrainJob:
    config, teacher = ctx.config, teacher_source(ctx.config, ctx.run_dir)
    plan = ctx.run_dir.phase_record("plan") or {}
    tokenizer, tokenizer_revision = student_tokenizer(config, teacher)
    job = TrainJob(
        name=name,
        files=files,
        transfer=Transfer(plan["transfer"]),
        model=config.student.model,
        revision=config.student.revision,
        init=config.student.init.model_dump() if config.student.init else None,
        lora=config.student.lora.model_dump(mode="json") if config.student.lora else None,
        tokenizer=tokenizer,
        tokenizer_revision=tokenizer_revision,
        output_dir="",
        training=training,
        trust_remote_code=config.student.trust_remote_code,
        template_kwargs=config.pool[config.main_teacher].chat_template_kwargs,
        excluded=excluded,
        commits=commits,
        binding=bind_student(config),
    )
    return replace(job, output_dir=ctx.run_dir.uri("training", f"{name}-{job.fingerprint()[:12]}"))


def _write_answers(ctx: RunContext) -> DataFile:
    """The accepted rows with nothing but their final answer as the completion."""
    manifest = ctx.run_dir.read_json("manifest.json")
    excluded = _excluded(ctx, manifest)
    without = f"-without-{hashlib.sha256(json.dumps(excluded).encode()).hexdigest()[:8]}" if excluded else ""
    name = f"control/answers-v{manifest['version']}{without}"
    if (known := ctx.run_dir.read_json(f"{name}.json")) is not None:
        return DataFile(**known)
    from services.template import PromptRenderer

    teacher = teacher_source(ctx.config, ctx.run_dir)
    trust_remote_code = ctx.config.pool[ctx.config.main_teacher].trust_remote_code
    tokenizer = PromptRenderer.load(teacher.model, teacher.revision, {}, trust_remote_code).tokenizer
    path, num_rows = ctx.run_dir.uri(f"{name}.parquet"), 0
    fsspec.url_to_fs(path)[0].makedirs(ctx.run_dir.uri("control"), exist_ok=True)
    columns = ["prompt_id", "status", "prompt", "completion", "prompt_token_ids"]
    with fsspec.open(path, "wb") as target, pq.ParquetWriter(target, CONTROL_SCHEMA) as writer:
        for file in manifest["files"]:
            with fsspec.open(ctx.run_dir.uri("completions", file["path"]), "rb") as source:
                batches = iterate_kept(pq.ParquetFile(source), columns, excluded, BATCH_ROWS)
                rows = [row for batch in batches for row in batch.to_pylist()]
            answers = [_answer_only(ctx, row, tokenizer) for row in rows if row["status"] == RowStatus.ACCEPTED]
            writer.write_table(pa.Table.from_pylist(answers, schema=CONTROL_SCHEMA))
            num_rows += len(answers)
    with fsspec.open(path, "rb") as written:
        digest = hashlib.sha256(written.read()).hexdigest()
    data = DataFile(path, num_rows, digest)
    ctx.run_dir.write_text(f"{name}.json", json.dumps(asdict(data)))
    return data


def _answer_only(ctx: RunContext, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    answer = final_answer(ctx.config.acceptance.verifier, row["completion"]) or ""
    token_ids = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {**row, "completion": answer, "completion_token_ids": token_ids}
