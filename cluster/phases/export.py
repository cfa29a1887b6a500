"""EXPORT: the student as a Hugging Face directory at a place that does not change, ``student/hf``."""

import hashlib
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import fsspec

from cluster.bom import cyclonedx_bom
from cluster.bom_spdx import spdx_bom
from cluster.cards import dataset_card, eu_training_content, model_card
from cluster.context import RunContext
from cluster.phases.train import student_job
from cluster.release import Texts, find_texts, write_release
from cluster.release_facts import ReleaseFacts, derive_data_license, derive_student_license
from cluster.release_manifest import list_files, write_manifest
from cluster.report import build_costed_report
from cluster.run_dir import program_version
from cluster.terms import gate_release, student_name
from configs.errors import UserError
from configs.load import dump_run_config
from configs.terms.policy import load_policy
from configs.terms.records import Decision
from services.file_digest import describe_file
from training.output import load_result
from training.storage import replaced_directory

WEIGHTS = ".safetensors"


def export(ctx: RunContext) -> dict[str, Any]:
    """Copy the trained student with its notices, cards and manifest; done when the exported one says the same.

    Raises:
        UserError: it is not trained, or a licence wants another name, or no longer allows it, or its text is missing.
    """
    job = student_job(ctx)
    result = load_result(job)
    if result is None:
        raise UserError("the student is not trained yet; run `stillhouse train` with the same recipe first")
    with ctx.terms_work("release"):
        decision = gate_release(ctx.config, ctx.run_dir.read_json("manifest.json"))
        texts = find_texts(decision, ctx.config.terms.license_texts)
    # Not of the day: deciding the same again is no reason to export again.
    decided = decision.model_copy(update={"decided_on": date.min}).model_dump_json() + student_name(ctx.config)
    decided += (ctx.config.terms.student_license or "") + json.dumps([texts.digests(), texts.missing])
    measured = json.dumps(ctx.run_dir.phase_record("evaluate"), sort_keys=True)
    made_of = {
        "job": job.fingerprint(),
        "terms": hashlib.sha256(decided.encode()).hexdigest(),
        "evaluation": hashlib.sha256(measured.encode()).hexdigest(),
    }
    record = ctx.run_dir.phase_record("export")
    if record is not None and {key: record.get(key) for key in made_of} == made_of:
        return record
    with ctx.terms_work("cards"):
        facts = _gather_facts(ctx, decision, job.fingerprint())
    return ctx.finish("export", lambda: {**_export(ctx, result.hf_dir, facts, texts), **made_of})


def _gather_facts(ctx: RunContext, decision: Decision, fingerprint: str) -> ReleaseFacts:
    policy = load_policy()
    return ReleaseFacts(
        name=student_name(ctx.config),
        version=fingerprint[:12],
        program=program_version(),
        config=ctx.config,
        decision=decision,
        manifest=ctx.run_dir.read_json("manifest.json"),
        report=build_costed_report(ctx),
        student_license=derive_student_license(decision, ctx.config.terms.student_license, policy),
        data_license=derive_data_license(decision, policy),
        created=datetime.now(UTC).replace(microsecond=0),
    )


def _export(ctx: RunContext, trained: str, facts: ReleaseFacts, texts: Texts) -> dict[str, Any]:
    filesystem, path = fsspec.url_to_fs(trained)
    with replaced_directory(ctx.run_dir.student_hf) as local:
        for source in filesystem.find(path):
            target = local / source.removeprefix(path.rstrip("/") + "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(source, str(target))
        with ctx.terms_work("release"):
            write_release(local, facts.decision, facts.name, texts)
        digest = _describe(ctx, local, facts)
    ctx.run_dir.write_text("README.md", dataset_card(facts))
    ctx.progress.say(f"export: {ctx.run_dir.student_hf}, MANIFEST.json with sha256 {digest}")
    if texts.missing:
        ctx.progress.say(
            f"export: before you pass it on, give the text of {', '.join(texts.missing)} in terms.license_texts and "
            "export again"
        )
    return {"student": ctx.run_dir.student_hf, "manifest_sha256": digest}


def _describe(ctx: RunContext, directory: Path, facts: ReleaseFacts) -> str:
    """Write cards, BOMs and at last the manifest of them all; returns its digest."""
    with ctx.terms_work("cards"):
        (directory / "README.md").write_text(model_card(facts), encoding="utf-8")
        (directory / "EU_TRAINING_CONTENT.md").write_text(eu_training_content(facts), encoding="utf-8")
    large = [path for path in list_files(str(directory)) if path.endswith(WEIGHTS)]
    with ctx.terms_work("manifest"):
        described = {path: describe_file(str(directory / path)) for path in large}  # read once, for all that name them
    weights = {path: each["sha256"] for path, each in described.items()}
    with ctx.terms_work("bom"):
        (directory / "sbom.spdx3.json").write_bytes(spdx_bom(facts, weights))
        (directory / "bom.cdx.json").write_text(cyclonedx_bom(facts, weights), encoding="utf-8")
    with ctx.terms_work("manifest"):
        return _write_manifest(directory, facts, described)


def _write_manifest(directory: Path, facts: ReleaseFacts, described: dict[str, dict[str, Any]]) -> str:
    config = dump_run_config(facts.config)
    return write_manifest(
        directory,
        {
            "name": facts.name,
            "version": facts.version,
            "program": facts.program,
            "created": facts.created.isoformat(),
            "policy": {"version": facts.decision.policy_version, "sha256": facts.decision.policy_digest},
            "recipe": {"name": facts.config.name, "sha256": hashlib.sha256(config.encode()).hexdigest()},
            "data": {
                **{key: facts.manifest[key] for key in ("version", "ledger")},
                "files": [
                    {key: file[key] for key in ("path", "num_rows", "sha256")} for file in facts.manifest["files"]
                ],
            },
        },
        described,
    )
