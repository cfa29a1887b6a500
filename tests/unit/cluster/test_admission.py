"""Rows of a teacher that is no longer allowed are left out of training, and no others."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission import admit
from cluster.context import RunContext
from cluster.phases.seal import seal_dataset
from cluster.phases.train import student_job
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.terms import gate_release, gate_training, recorded_sources
from configs.errors import UserError
from configs.schema import RunConfig, TrainingConfig
from configs.terms.policy import Kind, OutputRule, Policy, load_policy
from configs.terms.records import Verdict
from services.lineage import Lineage
from tests.unit.cluster.runs import record
from tests.unit.configs.trees import TREE
from tests.unit.services.shards import commit_rows, make_plan, make_prompts, make_rows, planned_ids
from training.corpus import load_corpus
from training.parallel import World

pytestmark = pytest.mark.unit

GOOD, BAD = "Qwen/Qwen3-8B", "meta-llama/Llama-2-7b-hf"
WAIVER = {
    "source": BAD,
    "license": "llama-2-license-2023",
    "document_sha256": "0" * 64,
    "approver": "Counsel",
    "expires": "2999-01-01",
}
LINEAGE = {
    "good": Lineage(teacher_repo=GOOD, teacher_license="apache-2.0"),
    "bad": Lineage(teacher_repo=BAD, teacher_license="llama-2-license-2023"),
}


def config_of(root: Path, **terms: Any) -> RunConfig:
    tree = {key: value for key, value in TREE.items() if key != "teacher"}
    tree["teachers"] = {"good": {"model": GOOD}, "bad": {"model": BAD}}
    tree["prompts"] = {"source": "p.jsonl", "default_teacher": "good"}
    party = {"monthly_active_users": 10}
    return RunConfig.model_validate(
        {**tree, "run_dir": str(root), "terms": {"prompts": {"license": "own"}, "party": party, **terms}}
    )


def context(config: RunConfig) -> RunContext:
    run_dir = RunDir.of(config)
    return RunContext(config, run_dir, Progress(config.name, run_dir))


@pytest.fixture
def sealed(tmp_path: Path) -> RunContext:
    """A run of two teachers, sealed under a waiver for one of them: shards of four rows, the second one's is its."""
    ctx = context(config_of(tmp_path, waivers=[WAIVER]))
    prompts, completions = Path(ctx.run_dir.prompts_uri), Path(ctx.run_dir.completions_uri)
    record(ctx.run_dir, "plan", rows=12, transfer="token_ids")
    make_plan(prompts, make_prompts(12))
    for shard, ids in enumerate(planned_ids(prompts)):
        name = "bad" if shard == 1 else "good"
        commit_rows(completions, make_rows(ids, shard=shard), shard, name, LINEAGE[name])
    seal_dataset(ctx)
    return ctx


def without_waiver(ctx: RunContext) -> RunContext:
    return context(config_of(Path(str(ctx.run_dir.root))))


def test_seal_counts_rows_by_their_lineage(sealed: RunContext) -> None:
    counted = {each["teacher_repo"]: each for each in sealed.run_dir.read_json("manifest.json")["lineage"]}
    assert {name: (each["rows"], each["accepted"]) for name, each in counted.items()} == {GOOD: (8, 8), BAD: (4, 4)}
    assert counted[BAD]["teacher_license"] == "llama-2-license-2023"


def test_all_rows_are_admitted_while_the_waiver_counts(sealed: RunContext) -> None:
    admission = gate_training(sealed.config, sealed.run_dir.read_json("manifest.json"))
    assert admission.quarantined == ()
    assert student_job(sealed).excluded == ()


def test_revoked_teacher_loses_its_rows_and_no_others(sealed: RunContext) -> None:
    ctx = without_waiver(sealed)
    manifest = ctx.run_dir.read_json("manifest.json")
    admission = gate_training(ctx.config, manifest)
    [quarantined] = admission.quarantined
    assert (quarantined.lineage["teacher_repo"], quarantined.accepted) == (BAD, 4)
    assert "llama-2" in quarantined.finding.license
    assert BAD not in {source.name for source in admission.decision.sources}
    assert not admission.decision.verdict.is_refusal
    job = student_job(ctx)
    assert job.fingerprint() != student_job(sealed).fingerprint()
    training = TrainingConfig(evaluation_fraction=0.0)
    corpus = load_corpus(job.files, training, World(0, 1, torch.device("cpu")), job.excluded)
    assert corpus.is_training.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert load_corpus(job.files, training, World(0, 1, torch.device("cpu"))).is_training.all()


def test_teacher_that_the_policy_now_denies_loses_its_rows(sealed: RunContext) -> None:
    """The entry of the licence has changed since: what was allowed by it no longer is."""
    manifest, recorded = sealed.run_dir.read_json("manifest.json"), load_policy()
    entries = tuple(
        each.model_copy(update={"outputs_for_training": OutputRule.DENY})
        if (each.kind, each.id) == (Kind.MODEL, "apache-2.0")
        else each
        for each in recorded.entries
    )
    today = Policy(version="later", entries=entries)
    admission = admit(sealed.config, manifest, recorded_sources(manifest), today)
    assert [each["teacher_repo"] for each in admission.excluded] == [GOOD]
    assert admission.decision.policy_version == "later"


def test_release_follows_what_was_learnt_from(sealed: RunContext) -> None:
    ctx = without_waiver(sealed)
    decision = gate_release(ctx.config, ctx.run_dir.read_json("manifest.json"))
    assert BAD not in {source.name for source in decision.sources}


def test_nothing_left_to_learn_from_is_one_sentence(tmp_path: Path, sealed: RunContext) -> None:
    ctx = without_waiver(sealed)
    manifest = ctx.run_dir.read_json("manifest.json")
    manifest["lineage"] = [each for each in manifest["lineage"] if each["teacher_repo"] == BAD]
    with pytest.raises(UserError, match=r"Llama 2 Community License.*the data was made on 20") as refused:
        gate_training(ctx.config, manifest)
    assert "\n" not in str(refused.value)


def test_base_of_a_teacher_counts_for_its_rows_alone(sealed: RunContext) -> None:
    """The waived model is the base of a third teacher, as its card said when the data was made."""
    manifest = sealed.run_dir.read_json("manifest.json")
    base = next(each for each in manifest["terms"]["sources"] if each["name"] == BAD)
    over = {"role": "teacher", "name": "owner/tuned", "statements": [{"text": "mit", "origin": "x", "entry": "mit"}]}
    manifest["terms"]["sources"] = [over, {**base, "via": "owner/tuned"}]
    for group in manifest["lineage"]:
        if group["teacher_repo"] == BAD:
            group |= {"teacher_repo": "owner/tuned", "teacher_license": "mit"}
    config = without_waiver(sealed).config
    assert [each["teacher_repo"] for each in gate_training(config, manifest).excluded] == ["owner/tuned"]


def test_licence_that_only_the_rows_name_counts(sealed: RunContext) -> None:
    manifest = sealed.run_dir.read_json("manifest.json")
    manifest["lineage"][0] |= {"teacher_repo": "nobody/else", "teacher_license": "grok-2-community"}
    assert [each["teacher_repo"] for each in gate_training(sealed.config, manifest).excluded] == ["nobody/else"]


@given(st.lists(st.sampled_from(["good", "bad"]), min_size=1, max_size=6), st.booleans())
def test_rows_are_judged_alike_whatever_lies_beside_them(names: list[str], waived: bool) -> None:
    config = config_of(Path("unused"), waivers=[WAIVER] if waived else [])
    groups = [{**LINEAGE[name].to_dict(), "accepted": number} for number, name in enumerate(names)]
    admission = admit(config, {"lineage": groups}, (), load_policy())
    if set(names) == {"bad"} and not waived:
        assert admission.decision.verdict is Verdict.DENY
        assert admission.excluded == ()
        return
    assert not admission.decision.verdict.is_refusal
    left_out = [each.accepted for each in admission.quarantined]
    assert left_out == ([] if waived else [number for number, name in enumerate(names) if name == "bad"])


def test_waiver_ends_by_itself(sealed: RunContext) -> None:
    expired = WAIVER | {"expires": date(2020, 1, 1).isoformat()}
    config = config_of(Path(str(sealed.run_dir.root)), waivers=[expired])
    assert gate_training(config, sealed.run_dir.read_json("manifest.json")).excluded[0]["teacher_repo"] == BAD


def test_sealed_file_that_was_changed_is_refused_by_name(sealed: RunContext) -> None:
    job = student_job(sealed)
    path = Path(job.files[1].path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}.*has changed: sha256"):
        load_corpus(job.files, TrainingConfig(), World(0, 1, torch.device("cpu")))


def test_job_without_its_exclusion_is_another_job(sealed: RunContext) -> None:
    job = student_job(without_waiver(sealed))
    assert replace(job, excluded=()).fingerprint() != job.fingerprint()
    assert type(job).from_json(job.to_json()) == job
