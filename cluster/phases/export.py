"""EXPORT: the student as a Hugging Face directory at a place that does not change, ``student/hf``."""

import hashlib
from datetime import date
from typing import Any

import fsspec

from cluster.context import RunContext
from cluster.phases.train import student_job
from cluster.release import write_release
from cluster.terms import gate_release, student_name
from configs.errors import UserError
from configs.terms.records import Decision
from training.output import load_result
from training.storage import replaced_directory


def export(ctx: RunContext) -> dict[str, Any]:
    """Copy the trained student with its notices; done when the exported one is of the same job and decision.

    Raises:
        UserError: it is not trained, or a licence wants another name, or no longer allows it.
    """
    job = student_job(ctx)
    result = load_result(job)
    if result is None:
        raise UserError("the student is not trained yet; run `stillhouse train` with the same recipe first")
    decision = gate_release(ctx.config, ctx.run_dir.read_json("manifest.json"))
    # Not of the day: deciding the same again is no reason to export again.
    decided = decision.model_copy(update={"decided_on": date.min}).model_dump_json() + student_name(ctx.config)
    made_of = {"job": job.fingerprint(), "terms": hashlib.sha256(decided.encode()).hexdigest()}
    record = ctx.run_dir.phase_record("export")
    if record is not None and {key: record.get(key) for key in made_of} == made_of:
        return record
    return ctx.finish("export", lambda: {**_export(ctx, result.hf_dir, decision), **made_of})


def _export(ctx: RunContext, trained: str, decision: Decision) -> dict[str, Any]:
    filesystem, path = fsspec.url_to_fs(trained)
    with replaced_directory(ctx.run_dir.student_hf) as local:
        for source in filesystem.find(path):
            target = local / source.removeprefix(path.rstrip("/") + "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(source, str(target))
        missing = write_release(local, decision, student_name(ctx.config))
    ctx.progress.say(f"export: {ctx.run_dir.student_hf}")
    if missing:
        ctx.progress.say(f"export: before you pass it on, add to LICENSES/ the text of {', '.join(missing)} (NOTICE)")
    return {"student": ctx.run_dir.student_hf}
