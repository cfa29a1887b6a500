"""EXPORT: the student as a Hugging Face directory at a place that does not change, ``student/hf``."""

from typing import Any

import fsspec

from cluster.context import RunContext
from cluster.phases.train import student_job
from configs.errors import UserError
from training.output import load_result
from training.storage import replaced_directory


def export(ctx: RunContext) -> dict[str, Any]:
    """Copy the trained student; done when the exported one is of the same job."""
    job = student_job(ctx)
    result = load_result(job)
    if result is None:
        raise UserError("the student is not trained yet; run `stillhouse train` with the same recipe first")
    record = ctx.run_dir.phase_record("export")
    if record is not None and record["job"] == job.fingerprint():
        return record
    return ctx.finish("export", lambda: {**_export(ctx, result.hf_dir), "job": job.fingerprint()})


def _export(ctx: RunContext, trained: str) -> dict[str, Any]:
    filesystem, path = fsspec.url_to_fs(trained)
    with replaced_directory(ctx.run_dir.student_hf) as local:
        for source in filesystem.find(path):
            target = local / source.removeprefix(path.rstrip("/") + "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(source, str(target))
    ctx.progress.say(f"export: {ctx.run_dir.student_hf}")
    return {"student": ctx.run_dir.student_hf}
