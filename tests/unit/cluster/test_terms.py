"""The gates: what is refused before anything starts, before training, and before a student is released."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run_command
from cluster.context import RunContext
from cluster.phases.export import export
from cluster.phases.seal import seal_dataset
from cluster.phases.terms import check_terms
from cluster.phases.train import train
from cluster.progress import Progress
from cluster.release import find_texts, write_release
from cluster.terms import decide, gate_plan, gate_release, gate_training, recorded_sources
from cluster.terms_sources import find_sources
from configs.errors import UserError
from configs.schema import RunConfig
from configs.terms.policy import load_policy
from configs.terms.records import Role, Source, Statement, Verdict
from tests.unit.cluster.releases import make_student
from tests.unit.cluster.runs import make_run
from tests.unit.configs.trees import TREE, make_config, put

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA_2, LLAMA_3_1 = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B-Instruct"


def make_model(directory: Path, card: str = "", text: str = "") -> str:
    """A model's directory as far as the gates look at it."""
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    if card:
        (directory / "README.md").write_text(f"---\n{card}\n---\n")
    if text:
        (directory / "LICENSE").write_text(text)
    return str(directory)


def config_of(teacher: str, **changed: Any) -> RunConfig:
    return make_config(**{"teacher": {"model": teacher}, "terms__party__monthly_active_users": 10, **changed})


def statements(config: RunConfig, role: Role = Role.TEACHER) -> dict[str, list[str | None]]:
    sources = find_sources(config, load_policy())
    return {each.name: [said.entry for said in each.statements] for each in sources if each.role is role}


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[RunContext]:
    """A run whose rows are there and not sealed yet."""
    run_dir, config = make_run(tmp_path / "run"), make_config(run_dir=str(tmp_path / "run"))
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        yield ctx
        assert not ctx.has_session


def with_config(ctx: RunContext, config: RunConfig) -> RunContext:
    return RunContext(config, ctx.run_dir, ctx.progress)


def test_default_recipe_needs_no_terms() -> None:
    decision = gate_plan(make_config())
    assert decision.verdict is Verdict.ALLOW
    assert {source.role for source in decision.sources} == {Role.TEACHER, Role.PROMPTS}


@pytest.fixture
def nothing_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr("services.engine.InProcessEngine.start", fail)


@pytest.mark.usefixtures("nothing_may_start")
@pytest.mark.parametrize("command", ["run", "generate", "plan", "plan --calibrate", "serve"])
def test_denied_teacher_is_refused_with_clause_and_fix_before_anything_starts(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    tree = put(put(TREE, "teacher", {"model": LLAMA_2}), "run_dir", str(tmp_path / "run"))
    recipe.write_text(json.dumps(tree))
    assert run_command([*command.split(), str(recipe)]) == 2
    printed = capsys.readouterr().err
    for needle in (LLAMA_2, "Llama 2 Community License, clause 1.b.v", "take another teacher", "terms.waivers"):
        assert needle in printed
    assert not (tmp_path / "run" / "prompts").exists()
    assert not (tmp_path / "run" / "phases").exists()


@pytest.mark.usefixtures("nothing_may_start")
def test_denied_teacher_needs_no_cluster_to_be_refused(ctx: RunContext) -> None:
    with pytest.raises(UserError, match="llama-2"):
        check_terms(with_config(ctx, config_of(LLAMA_2)))
    assert not ctx.has_session


def test_unknown_teacher_is_refused_with_the_way_to_record_a_waiver(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"nothing says what its licence is; .*terms.waivers .* license: unknown"):
        gate_plan(config_of(model))


def test_unstated_users_are_asked_for() -> None:
    config = make_config(teacher={"model": LLAMA_3_1})
    with pytest.raises(UserError, match=r"needs a person's decision.*set terms.party.monthly_active_users"):
        gate_plan(config)


def test_card_and_licence_text_of_a_directory_are_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "license: mit\nbase_model: meta-llama/Llama-3.1-8B")
    found = statements(config_of(model, terms__teacher__license="apache-2.0"))
    assert found == {model: ["apache-2.0", "mit"], "meta-llama/Llama-3.1-8B": ["llama-3.1-license-2024"]}


LLAMA_2_TEXT = "LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version Release Date: July 18, 2023"


def test_licence_text_over_a_milder_card_counts(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "license: mit", text=LLAMA_2_TEXT)
    assert statements(config_of(model)) == {model: ["mit", "llama-2-license-2023"]}
    with pytest.raises(UserError, match=r"Llama 2 Community License, clause 1\.b\.v"):
        gate_plan(config_of(model, terms__teacher__license="mit"))


def test_licence_text_without_a_card_is_a_statement(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", text="Apache License\nVersion 2.0, January 2004")
    assert gate_plan(config_of(model)).verdict is Verdict.ALLOW


def test_lineage_of_local_bases_is_followed_and_may_be_a_circle(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    make_model(one, f"license: mit\nbase_model: {two}")
    make_model(two, f"license: gemma\nbase_model: {one}")
    config = config_of(str(one))
    assert statements(config) == {str(one): ["mit"], str(two): ["gemma-terms"]}
    assert decide(config).student_is_derivative


@pytest.mark.parametrize(
    "card",
    [
        f"license: mit\nlicense: mit\nbase_model: {LLAMA_2}",
        f"license: mit\nbase_model: [{{name: {LLAMA_2}}}]",
        f"date: 2024-13-45\nbase_model: {LLAMA_2}",
    ],
    ids=["a key twice", "another form", "no date"],
)
def test_card_that_cannot_be_read_is_refused_whatever_the_recipe_says(card: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", card)
    config = config_of(model, terms__teacher__license="mit")
    with pytest.raises(UserError, match=r"its README\.md cannot be read: .*put that right, or record a waiver") as told:
        gate_plan(config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("models", "allowed"), [(16, True), (17, False), (20, False)])
def test_lineage_is_not_cut_in_silence(models: int, allowed: bool, tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number}") for number in range(models)]
    bases = [f"\nbase_model: {base}" for base in names[1:]] + [""]
    for name, base in zip(names, bases, strict=True):
        make_model(Path(name), f"license: mit{base}")
    if allowed:
        assert gate_plan(config_of(names[0])).verdict is Verdict.ALLOW
        return
    with pytest.raises(UserError, match=rf"{names[16]} is denied: it stands behind 16 models, and no longer lineage"):
        gate_plan(config_of(names[0]))


def test_mit_tagged_model_over_a_denied_base_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", f"license: mit\nbase_model: {LLAMA_2}")
    with pytest.raises(UserError, match="Llama 2 Community License"):
        gate_plan(config_of(model))


def test_recipe_cannot_make_a_repository_milder() -> None:
    with pytest.raises(UserError, match="Llama 2"):
        gate_plan(config_of(LLAMA_2, terms__teacher__license="apache-2.0"))


def test_directory_named_like_a_repository_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    make_model(tmp_path / "Qwen" / "Qwen3-8B")
    assert statements(config_of("Qwen/Qwen3-8B")) == {"Qwen/Qwen3-8B": []}


def test_student_of_the_same_family_may_learn_from_llama_2(tmp_path: Path) -> None:
    student = make_model(tmp_path / "student", "license: llama2")
    config = config_of(LLAMA_2, student={"model": student})
    assert gate_plan(config).verdict is Verdict.ALLOW_WITH_OBLIGATIONS
    mixed = make_model(tmp_path / "mixed", "license: [llama2, mit]")
    with pytest.raises(UserError, match="family llama-2"):
        gate_plan(config_of(LLAMA_2, student={"model": mixed}))


def test_hub_data_set_is_known_by_name_and_an_unknown_one_refused() -> None:
    known = make_config(prompts={"source": "hf://datasets/openai/gsm8k"})
    assert statements(known, Role.PROMPTS) == {"hf://datasets/openai/gsm8k": ["mit"]}
    with pytest.raises(UserError, match=r"name its licence in terms\.prompts\.license"):
        gate_plan(make_config(prompts={"source": "hf://datasets/somebody/something"}))


def test_every_teacher_judge_and_service_counts() -> None:
    two = {"small": {"model": "Qwen/Qwen3-8B"}, "large": {"model": "owner/large"}}
    tree = {key: value for key, value in TREE.items() if key != "teacher"}
    tree |= {"teachers": two, "prompts": {"source": "p.jsonl", "default_teacher": "small"}}
    terms = {
        "teachers": {"large": {"license": "gemma"}},
        "prompts": {"license": "own"},
        "judges": [{"model": "openai/gpt-oss-20b"}],
        "services": [{"provider": "deepseek"}],
    }
    config = RunConfig.model_validate(tree | {"terms": terms})
    assert statements(config) == {"Qwen/Qwen3-8B": ["apache-2.0"], "owner/large": ["gemma-terms"]}
    assert statements(config, Role.JUDGE) == {"openai/gpt-oss-20b": ["apache-2.0"]}
    assert statements(config, Role.SERVICE) == {"deepseek": ["deepseek-open-platform-tos-2026-04-29"]}
    with pytest.raises(ValueError, match=r"terms\.teachers\.huge must be one of the recipe's teachers"):
        RunConfig.model_validate(tree | {"terms": {"teachers": {"huge": {"license": "mit"}}}})


def test_revision_is_pinned_where_others_get_the_student(tmp_path: Path) -> None:
    config = config_of("Qwen/Qwen3-8B")
    assert gate_plan(config).verdict is Verdict.ALLOW
    for revision in (None, "main", COMMIT[:12]):
        teacher = {"model": "Qwen/Qwen3-8B", "revision": revision}
        with pytest.raises(UserError, match=r"teacher.revision must be a commit .*Qwen/Qwen3-8B"):
            gate_plan(make_config(teacher=teacher, terms__party__distribution="weights"))
    teacher = {"model": "Qwen/Qwen3-8B", "revision": COMMIT}
    assert gate_plan(make_config(teacher=teacher, terms__party__distribution="weights")).verdict is Verdict.ALLOW


def test_licence_text_must_be_the_one_that_was_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "license: mit", text="Permission is granted")
    digest = hashlib.sha256(b"Permission is granted").hexdigest()
    config = config_of(model, terms__teacher__license_sha256=digest)
    gate_plan(config)
    (tmp_path / "model" / "LICENSE").write_text("permission is granted")
    with pytest.raises(UserError, match=rf"terms.teacher.license_sha256 \({digest}\) is not there: .*LICENSE"):
        gate_plan(config)


def test_licence_text_of_a_judge_must_be_the_one_that_was_read(tmp_path: Path) -> None:
    judge = {"model": make_model(tmp_path / "judge", "license: mit", text="You may."), "license_sha256": "0" * 64}
    with pytest.raises(UserError, match=r"terms\.judges\.0\.license_sha256 \(0{64}\) is not there: .*LICENSE"):
        gate_plan(make_config(terms__judges=[judge]))
    judge["license_sha256"] = hashlib.sha256(b"You may.").hexdigest()
    assert gate_plan(make_config(terms__judges=[judge])).verdict is Verdict.ALLOW


@pytest.mark.parametrize(
    ("key", "value"), [("license_sha256", "0" * 64), ("base_models", ["a/b"]), ("multimodal", False)]
)
def test_key_that_says_nothing_of_prompts_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"prompts\.{key} says nothing: .* leave it out"):
        make_config(**{f"terms__prompts__{key}": value})


def test_waiver_with_its_document_lets_the_run_go_on_and_is_recorded(tmp_path: Path) -> None:
    document = tmp_path / "agreement.txt"
    document.write_text("You may.")
    waiver = {
        "source": LLAMA_2,
        "license": "llama-2-license-2023",
        "document": str(document),
        "document_sha256": hashlib.sha256(b"You may.").hexdigest(),
        "approver": "Counsel",
        "expires": "2999-01-01",
    }
    config = config_of(LLAMA_2, terms__waivers=[waiver])
    decision = gate_plan(config)
    assert decision.verdict is Verdict.ALLOW_WITH_OBLIGATIONS
    assert [each.waiver.approver for each in decision.findings if each.waiver] == ["Counsel"]
    assert gate_release(config, {}).verdict is Verdict.ALLOW_WITH_OBLIGATIONS
    document.write_text("You may not.")
    for gate in (gate_plan, lambda config: gate_training(config, {}), lambda config: gate_release(config, {})):
        with pytest.raises(UserError, match=r"terms.waivers.0.document: .* the document with sha256"):
            gate(config)
    document.unlink()
    with pytest.raises(UserError, match=r"terms.waivers.0.document: .* is not there"):
        gate_training(config, {})


def test_seal_records_the_decision_with_its_policy(ctx: RunContext) -> None:
    seal_dataset(ctx)
    manifest = ctx.run_dir.read_json("manifest.json")
    policy = load_policy()
    assert manifest["terms"]["verdict"] == "allow"
    assert (manifest["terms"]["policy_version"], manifest["terms"]["policy_digest"]) == (policy.version, policy.digest)
    assert {source.name for source in recorded_sources(manifest)} == {"the home-made teacher", "prompts.addition"}


def record_teacher(ctx: RunContext, entry: str) -> None:
    """The data was made by a teacher that was allowed then."""
    manifest = ctx.run_dir.read_json("manifest.json")
    said = Statement(text=entry, origin="test", entry=entry)
    teacher = Source(role=Role.TEACHER, name="once/allowed", statements=(said,))
    manifest["terms"]["sources"].append(teacher.model_dump(mode="json"))
    ctx.run_dir.write_json("manifest.json", manifest)


def test_training_refuses_data_whose_teacher_has_become_denied(ctx: RunContext) -> None:
    seal_dataset(ctx)
    gate_training(ctx.config, ctx.run_dir.read_json("manifest.json"))
    record_teacher(ctx, "grok-2-community")
    ctx.run_dir.write_json("phases/plan.json", {"transfer": "token_ids"})
    with pytest.raises(UserError, match=r"once/allowed is denied: Grok 2 .*the data was made on 20"):
        train(ctx)


def test_sealing_again_keeps_what_the_rows_were_made_from(ctx: RunContext) -> None:
    seal_dataset(ctx)
    record_teacher(ctx, "mit")
    Path(ctx.run_dir.uri("phases", "seal.json")).unlink()
    seal_dataset(ctx)
    assert "once/allowed" in {source.name for source in recorded_sources(ctx.run_dir.read_json("manifest.json"))}


@pytest.mark.parametrize(
    ("name", "allowed"), [("MyStudent", False), ("llama-mine", False), ("Llama-MyStudent", True), ("Llama3", True)]
)
def test_release_wants_a_name_that_begins_with_llama(name: str, allowed: bool) -> None:
    config = config_of(LLAMA_3_1, terms__student_name=name)
    if allowed:
        gate_release(config, {})
        return
    with pytest.raises(
        UserError, match=rf"begins with 'Llama', and the student is called '{name}'; set .*=Llama-{name}"
    ):
        gate_release(config, {})


def test_release_takes_the_runs_name_where_none_is_given() -> None:
    with pytest.raises(UserError, match="is called 'small'"):
        gate_release(config_of(LLAMA_3_1), {})
    gate_release(config_of(LLAMA_3_1, name="Llama-small"), {})


def test_release_refuses_a_name_that_begins_with_the_teachers() -> None:
    research = {"intended_use": "research"}
    config = config_of("Qwen/Qwen2.5-3B", terms__party=research, terms__student_name="Qwen-mine")
    with pytest.raises(UserError, match="does not begin with 'Qwen'"):
        gate_release(config, {})
    gate_release(config_of("Qwen/Qwen2.5-3B", terms__party=research, terms__student_name="Mine-Qwen"), {})


def test_released_student_has_notice_licences_and_the_decision(tmp_path: Path) -> None:
    student = make_model(tmp_path / "base", "license: llama3.1", text="the text of Llama")
    config = config_of("google/gemma-3-27b-it", student={"model": student}, terms__student_name="Llama-Mine")
    decision = gate_release(config, {})
    (tmp_path / "hf").mkdir()
    texts = find_texts(decision, {})
    write_release(tmp_path / "hf", decision, "Llama-Mine", texts)
    notice = (tmp_path / "hf" / "NOTICE").read_text()
    for text in (
        "Llama-Mine\n",
        "Built with Llama",
        "Llama 3.1 is licensed under the Llama 3.1 Community License",
        "Gemma is provided under and subject to the Gemma Terms of Use",
        "agrees on the use restrictions",
        "ai.google.dev/gemma/terms",
    ):
        assert text in notice
    assert texts.missing == ("gemma-terms",)
    copies = [path for path in (tmp_path / "hf" / "LICENSES").rglob("*") if path.is_file()]
    assert [path.read_text() for path in copies] == ["the text of Llama"]
    assert json.loads((tmp_path / "hf" / "terms.json").read_text())["policy_digest"] == load_policy().digest


def test_student_of_an_apache_base_gets_the_licence_that_is_at_hand(tmp_path: Path) -> None:
    config = config_of("openai/gpt-oss-20b", student={"model": "Qwen/Qwen3-4B"})
    decision = gate_release(config, {})
    texts = find_texts(decision, {})
    assert texts.missing == ()
    write_release(tmp_path, decision, "mine", texts)
    assert "Apache License" in (tmp_path / "LICENSES" / "apache-2.0.txt").read_text()


def test_export_checks_the_name_and_writes_notices_once_for_a_decision(ctx: RunContext) -> None:
    make_student(ctx)
    record = export(ctx)
    student = Path(ctx.run_dir.student_hf)
    assert {"config.json", "NOTICE", "terms.json"} <= {path.name for path in student.iterdir()}
    assert "teacher the home-made teacher" in (student / "NOTICE").read_text()
    (student / "NOTICE").unlink()
    assert export(ctx) == record
    assert not (student / "NOTICE").exists()  # the same student by the same decision: nothing was done
    export(with_config(ctx, make_config(terms={"student_name": "Mine"})))
    assert (student / "NOTICE").read_text().startswith("Mine\n")
    record_teacher(ctx, "llama-3.1-license-2024")
    with pytest.raises(UserError, match="begins with 'Llama'"):
        export(with_config(ctx, make_config(terms__party__monthly_active_users=1)))


def test_terms_commands_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["terms", "list"]) == 0
    listed = capsys.readouterr().out
    assert load_policy().digest in listed
    assert all((entry.provider or entry.id) in listed for entry in load_policy().entries)
    needles = {"llama3.1": "1.b.i", "MIT": "effective  not stated", "openai": "effective  2026-01-01", LLAMA_2: "1.b.v"}
    for name, needle in (*needles.items(), ("cohere", "no clause stated")):
        assert run_command(["terms", "check", name]) == 0
        assert needle in capsys.readouterr().out


def test_terms_check_of_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["terms", "check", "my-licence"]) == 2
    assert "no entry for 'my-licence'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "check", "explain"])
def test_help_of_terms_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["terms", command, "--help"]) == 0
    assert f"stillhouse terms {command}" in capsys.readouterr().out.split("Example:")[1]


def test_terms_explain_has_clauses_duties_and_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(put(TREE, "teacher", {"model": LLAMA_3_1})))
    assert run_command(["terms", "explain", str(recipe)]) == 2
    printed = capsys.readouterr().out
    assert "verdict    review" in printed
    assert "in the way" in printed
    assert run_command(["terms", "explain", str(recipe), "terms.party.monthly_active_users=5"]) == 0
    printed = capsys.readouterr().out
    assert "verdict    allow with obligations" in printed
    assert "name prefix: Llama, clause 1.b.i" in printed
    assert "not legal advice" in printed
