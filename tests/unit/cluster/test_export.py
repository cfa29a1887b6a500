"""What a released student comes with: cards, BOMs and a manifest that their own readers accept."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spdx_python_model
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from cluster.cards import sampling_words
from cluster.cli import run_command
from cluster.context import RunContext
from cluster.phases.export import export
from cluster.progress import Progress
from cluster.release_facts import derive_data_license, derive_student_license
from cluster.release_manifest import find_fault
from cluster.terms import decide
from configs.errors import UserError
from configs.schema import RunConfig
from configs.terms.policy import load_policy
from tests.unit.cluster.releases import make_student
from tests.unit.cluster.runs import make_run
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit

LLAMA, LLAMA_2 = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-2-7b-hf"
BESIDE = {
    "config.json",
    "model.safetensors",
    "NOTICE",
    "terms.json",
    "README.md",
    "EU_TRAINING_CONTENT.md",
    "sbom.spdx3.json",
    "bom.cdx.json",
    "MANIFEST.json",
}


def changed(**keys: Any) -> RunConfig:
    return make_config(evaluation={"addition": {"num_problems": 500}}, **keys)


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[RunContext]:
    """A run that is ready to be exported."""
    run_dir, config = make_run(tmp_path / "run"), changed(run_dir=str(tmp_path / "run"))
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        make_student(ctx)
        yield ctx
        assert not ctx.has_session


@pytest.fixture
def student(ctx: RunContext) -> Path:
    export(ctx)
    return Path(ctx.run_dir.student_hf)


def test_export_has_cards_boms_and_a_manifest_of_them_all(student: Path) -> None:
    assert {path.name for path in student.iterdir()} == BESIDE
    manifest = json.loads((student / "MANIFEST.json").read_text())
    assert {each["path"] for each in manifest["files"]} == BESIDE - {"MANIFEST.json"}
    assert manifest["policy"] == {"version": load_policy().version, "sha256": load_policy().digest}
    assert manifest["data"]["ledger"]["accepted"] == 10
    assert find_fault(str(student)) is None


def test_phases_record_what_licences_and_terms_took(ctx: RunContext, student: Path) -> None:
    """Work between two phases belongs to the next record, and is in no other."""
    sealed, exported = (ctx.run_dir.read_json("phases", f"{phase}.json")["terms_s"] for phase in ("seal", "export"))
    assert sealed.keys() == {"record", "claims"}
    assert exported.keys() == {"admit", "release", "cards", "bom", "manifest"}
    assert all(seconds > 0 for seconds in (*sealed.values(), *exported.values()))


def test_export_is_done_again_when_the_evaluation_or_the_licence_changes(ctx: RunContext, student: Path) -> None:
    (student / "NOTICE").unlink()
    export(ctx)
    assert not (student / "NOTICE").exists()
    Path(ctx.run_dir.uri("phases", "evaluate.json")).unlink()
    export(ctx)
    assert "Not measured" in (student / "README.md").read_text()
    chosen = changed(terms__student_license="apache-2.0")
    export(RunContext(chosen, ctx.run_dir, ctx.progress))
    assert ModelCard.load(student / "README.md").data.license == "apache-2.0"


def test_released_files_carry_neither_secrets_nor_the_partys_own_business(ctx: RunContext, tmp_path: Path) -> None:
    """The student's files, and those that go to the Hub with the rows."""
    document = tmp_path / "s3cret.pdf"
    document.write_text("allowed")
    digest = hashlib.sha256(b"allowed").hexdigest()
    waiver = {"source": LLAMA_2, "license": "llama-2-license-2023", "document_sha256": digest, "approver": "Jane Doe"}
    party = {"monthly_active_users": 845_678_901, "annual_revenue_usd": 456_789_012, "competes_with": ["s3cret"]}
    over = {"source": LLAMA, "license": "llama-3.1-license-2024", "document_sha256": digest, "approver": "Jane Doe"}
    waivers = [{**each, "document": str(document), "expires": "2999-01-01"} for each in (waiver, over)]
    terms = {"prompts": {"license": "own"}, "waivers": waivers, "student_name": "Llama-mine"}
    keys: dict[str, Any] = {"teacher": {"model": LLAMA_2}, "student": {"model": LLAMA}}
    source = "https://me:s3cret@host/prompts.jsonl?X-Amz-Signature=s3cret"
    make_trained_by(ctx, changed(**keys, prompts={"source": source}, terms={**terms, "party": party}))
    student = Path(ctx.run_dir.student_hf)
    released = [each for each in student.rglob("*") if each.is_file()]
    released += [Path(ctx.run_dir.uri(name)) for name in ("README.md", "manifest.json")]
    assert len(released) >= len(BESIDE) + 2
    for path in released:
        for private in (b"s3cret", *(str(number).encode() for number in (845_678_901, 456_789_012)), b"845,678,901"):
            assert private not in path.read_bytes(), f"{private!r} in {path.name}"
    told = json.loads((student / "terms.json").read_text())
    assert told == ctx.run_dir.read_json("manifest.json")["terms"]
    waived = [each["waiver"] for each in told["findings"] if each["waiver"]]
    assert {each["license"] for each in waived} == {each["license"] for each in waivers}
    for each in waived:
        assert (each["document_sha256"], each["approver"], each["expires"]) == (digest, "Jane Doe", "2999-01-01")
    assert told["party"]["intended_use"] == "commercial"
    assert "https://host/prompts.jsonl" in (student / "NOTICE").read_text()


def test_model_card_is_read_by_the_hubs_library_and_tells_the_run(student: Path) -> None:
    card = ModelCard.load(student / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "not-chosen")
    assert card.data.library_name == "transformers"
    assert "distillation" in card.data.tags
    assert card.data.base_model is None
    assert [each.metric_value for each in card.data.eval_results] == [0.7]
    for words in (
        "the home-made teacher",
        "10 accepted, 0 rejected, 0 failed",
        "temperature 0.7",
        "| teacher | 90.0% |",
        "75.0%",
        "point of the gap",
        "all rights are theirs",
        "The licences of its sources ask for nothing",
    ):
        assert words in card.text
    assert "\n\n\n" not in card.text


def test_model_card_of_a_base_names_it_and_shows_what_licences_want(ctx: RunContext) -> None:
    config = changed(
        teacher={"model": LLAMA},
        student={"model": "Qwen/Qwen3-0.6B"},
        terms={"student_name": "Llama-mine", "party": {"monthly_active_users": 5}},
    )
    make_trained_by(ctx, config)
    student = Path(ctx.run_dir.student_hf)
    card = ModelCard.load(student / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == ["Qwen/Qwen3-0.6B"]
    assert card.data.base_model_relation == "finetune"
    assert LLAMA in card.text
    matter = yaml.safe_load(card.data.to_yaml())
    name, results = model_index_to_eval_results(matter["model-index"])
    assert (name, results[0].metric_name) == ("Llama-mine", "share solved")
    data = DatasetCard.load(ctx.run_dir.uri("README.md")).data
    assert data.license == "llama3.1"
    assert "meta-llama" in (student / "EU_TRAINING_CONTENT.md").read_text()


def test_card_of_a_llama_shows_what_its_licence_wants_and_myname_is_refused(ctx: RunContext) -> None:
    party = {"party": {"monthly_active_users": 5}}
    keys: dict[str, Any] = {"teacher": {"model": "Qwen/Qwen3-8B"}, "student": {"model": "meta-llama/Llama-3.1-8B"}}
    with pytest.raises(UserError, match="begins with 'Llama'"):
        make_trained_by(ctx, changed(**keys, terms={"student_name": "MyStudent", **party}))
    assert not Path(ctx.run_dir.student_hf).exists()
    make_trained_by(ctx, changed(**keys, terms={"student_name": "Llama-MyStudent", **party}))
    card = ModelCard.load(Path(ctx.run_dir.student_hf, "README.md"))
    assert card.data.license == "llama3.1"
    for words in ("# Llama-MyStudent", "> Built with Llama", "Llama 3.1 is licensed under", "acceptable use policy"):
        assert words in card.text


def taught_by_gemma(**terms: Any) -> RunConfig:
    return changed(
        teacher={"model": "google/gemma-3-27b-it", "revision": "0" * 40},
        terms={"party": {"distribution": "weights"}, **terms},
    )


def test_text_to_pass_on_that_is_nowhere_is_refused_until_the_recipe_gives_it(ctx: RunContext, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"terms.license_texts: the text of Gemma .* and add gemma-terms: FILE there$"):
        make_trained_by(ctx, taught_by_gemma())
    assert not Path(ctx.run_dir.student_hf).exists()
    text = tmp_path / "gemma.txt"
    text.write_text("the text of Gemma")
    config = taught_by_gemma(license_texts={"Gemma-Terms": str(text)})
    make_trained_by(ctx, config)
    student = Path(ctx.run_dir.student_hf)
    assert (student / "LICENSES" / "gemma-terms" / "gemma.txt").read_text() == "the text of Gemma"
    assert "were not found" not in (student / "NOTICE").read_text()
    assert find_fault(str(student)) is None
    again = RunContext(config, ctx.run_dir, ctx.progress)
    record = again.run_dir.phase_record("export")
    assert export(again) == record
    text.write_text("another text")
    assert export(again) != record
    assert (student / "LICENSES" / "gemma-terms" / "gemma.txt").read_text() == "another text"


def test_licence_text_that_is_not_there_or_of_no_known_licence_is_refused(ctx: RunContext, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"terms.license_texts.gemma-terms: there is no file .*gemma.txt; give"):
        make_trained_by(ctx, taught_by_gemma(license_texts={"gemma-terms": str(tmp_path / "gemma.txt")}))
    with pytest.raises(UserError, match=r"terms.license_texts: mine is no licence that the policy has"):
        make_trained_by(ctx, taught_by_gemma(license_texts={"mine": str(tmp_path / "gemma.txt")}))


def test_student_that_nobody_else_gets_is_exported_with_a_note_on_missing_texts(ctx: RunContext) -> None:
    make_trained_by(ctx, taught_by_gemma(party={"distribution": "none"}))
    student = Path(ctx.run_dir.student_hf)
    assert "were not found where this model was made:\n- Gemma" in (student / "NOTICE").read_text()
    assert find_fault(str(student)) is None


def make_trained_by(ctx: RunContext, config: RunConfig) -> None:
    """Export the same rows as those of another teacher and student."""
    Path(ctx.run_dir.uri("phases", "seal.json")).unlink(missing_ok=True)
    Path(ctx.run_dir.uri("manifest.json")).unlink(missing_ok=True)
    other = RunContext(config, ctx.run_dir, ctx.progress)
    make_student(other)
    export(other)


def test_dataset_card_loads_the_sealed_rows_and_no_others(ctx: RunContext, student: Path) -> None:
    card = DatasetCard.load(ctx.run_dir.uri("README.md"))
    [config] = card.data.configs
    files = config["data_files"][0]["path"]
    sealed = ctx.run_dir.read_json("manifest.json")["files"]
    assert files == [f"completions/{each['path']}" for each in sealed]
    assert all(Path(ctx.run_dir.uri(file)).is_file() for file in files)
    assert card.data.size_categories == "n<1K"
    assert "\n\n\n" not in card.text


def test_spdx_bom_is_read_and_accepted_by_its_own_library(student: Path) -> None:
    model, objects = spdx_python_model.load(student / "sbom.spdx3.json")
    assert objects.link() == set()
    [package] = [each for each in objects.foreach_type(model.ai_AIPackage) if each.name == "small"]
    assert {each.key: each.value for each in package.ai_metric}["accuracy of teacher"] == "0.9"
    [data] = [each for each in objects.foreach_type(model.dataset_DatasetPackage) if "completions" in each.name]
    assert data.dataset_datasetSize == 10
    related = {
        each.relationshipType.rsplit("/", 1)[-1]: each.to[0].name for each in objects.foreach_type(model.Relationship)
    }
    assert related["trainedOn"] == "small: prompts and completions"
    assert related["contains"] == "model.safetensors"
    [document] = objects.foreach_type(model.SpdxDocument)
    assert {each.rsplit("/", 1)[-1] for each in document.profileConformance} >= {"ai", "dataset", "simpleLicensing"}


def test_cyclonedx_bom_is_accepted_by_its_own_validator(student: Path) -> None:
    text = (student / "bom.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"supervised"', '"guessed"')) is not None
    model = json.loads(text)["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert {"type": "gap closed", "value": "0.75"} in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [each["name"] for each in model["components"]] == ["model.safetensors"]


def test_cyclonedx_bom_has_a_service_among_the_services(ctx: RunContext) -> None:
    make_trained_by(ctx, changed(terms={"services": [{"provider": "deepseek"}]}))
    text = Path(ctx.run_dir.student_hf, "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    [service] = bom["services"]
    assert service["name"] == "deepseek"
    assert "DeepSeek" in service["licenses"][0]["license"]["name"]
    assert "deepseek" not in [each["name"] for each in bom["components"]]
    assert service["bom-ref"] in next(each["dependsOn"] for each in bom["dependencies"] if each["ref"] == "data")


def test_eu_section_names_teachers_and_their_provider(student: Path) -> None:
    text = (student / "EU_TRAINING_CONTENT.md").read_text()
    for words in ("section 2.5", "model distillation", "the home-made teacher", "the maker of this model"):
        assert words in text


@pytest.mark.parametrize(
    ("keys", "student", "data"),
    [
        ({}, ("other", "not-chosen"), ("other", "not-chosen")),
        ({"student": {"model": "Qwen/Qwen3-0.6B"}}, ("apache-2.0", None), ("other", "not-chosen")),
        ({"teacher": {"model": "google/gemma-3-27b-it"}}, ("gemma", None), ("gemma", None)),
        ({"teacher": {"model": LLAMA}}, ("other", "not-chosen"), ("llama3.1", None)),
        (
            {"teacher": {"model": "google/gemma-3-27b-it"}, "student": {"model": "Qwen/Qwen3-0.6B"}},
            ("other", "apache-2.0-and-gemma-terms"),
            ("gemma", None),
        ),
        ({"prompts": {"source": "hf://datasets/openai/gsm8k"}}, ("other", "not-chosen"), ("mit", None)),
    ],
)
def test_licences_follow_from_the_decision(keys: dict[str, Any], student: Any, data: Any) -> None:
    decision, policy = decide(make_config(**keys)), load_policy()
    found = derive_student_license(decision, None, policy)
    assert (found.license, found.license_name) == student
    found = derive_data_license(decision, policy)
    assert (found.license, found.license_name) == data


def test_student_licence_is_chosen_only_where_sources_leave_the_choice() -> None:
    policy = load_policy()
    free = decide(make_config(student={"model": "Qwen/Qwen3-0.6B"}))
    assert derive_student_license(free, "mit", policy).license == "mit"
    bound = decide(make_config(teacher={"model": "google/gemma-3-27b-it"}))
    with pytest.raises(UserError, match="not for you to choose: the student is bound by Gemma"):
        derive_student_license(bound, "mit", policy)
    with pytest.raises(UserError, match="not in the policy"):
        derive_student_license(free, "my-licence", policy)


def spoil(path: Path, *places: int) -> None:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 1
    path.write_bytes(bytes(content))


def test_verify_names_the_byte_that_differs(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["verify", str(student)]) == 0
    was = (student / "model.safetensors").read_bytes()[300]
    spoil(student / "model.safetensors", 300)
    assert run_command(["verify", str(student)]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "model.safetensors differs, first at byte 300 of " in printed
    assert f": {was ^ 1}, and was {was}" in printed


def test_verify_names_the_part_of_which_several_bytes_differ(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(student / "model.safetensors", 300, 301, 310, 400)
    assert run_command(["verify", str(student)]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "model.safetensors differs, first in bytes 256 to 511 of " in printed


@pytest.mark.parametrize("name", ["NOTICE", "terms.json", "README.md", "bom.cdx.json"])
def test_verify_refuses_one_changed_byte_of_any_file(student: Path, name: str) -> None:
    spoil(student / name, 0)
    assert re.match(rf"{name} differs, first at byte 0 of [\d,]+: \d+, and was \d+$", find_fault(str(student)) or "")


def test_verify_names_files_that_are_missing_added_or_cut(student: Path) -> None:
    (student / "more.txt").write_text("x")
    assert find_fault(str(student)) == "more.txt was added after the release"
    (student / "more.txt").unlink()
    size = (student / "NOTICE").stat().st_size
    with (student / "NOTICE").open("a") as file:
        file.write("x")
    appended = f"NOTICE differs, first at byte {size} of {size}: it was appended to and has {size + 1} bytes"
    assert find_fault(str(student)) == appended
    (student / "NOTICE").unlink()
    assert find_fault(str(student)) == "NOTICE is missing"


@pytest.mark.parametrize(("size", "told"), [(256, "differs, first at byte 256 of "), (300, "; it has 300 bytes")])
def test_verify_says_where_a_file_was_cut(student: Path, size: int, told: str) -> None:
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert told in (find_fault(str(student)) or "")


def test_verify_of_a_run_names_the_shard_that_differs(ctx: RunContext, student: Path) -> None:
    root = str(ctx.run_dir.root)
    assert find_fault(root) is None
    shard = f"completions/{ctx.run_dir.read_json('manifest.json')['files'][0]['path']}"
    spoil(Path(root, shard), 10)
    assert (find_fault(root) or "").startswith(f"{shard} differs, first at byte 10 of ")
    sealed = ctx.run_dir.read_json("manifest.json")
    for file in sealed["files"]:
        for key in ("bytes", "part_bytes", "parts", "sums", "place_sums"):
            del file[key]
    ctx.run_dir.write_json("manifest.json", sealed)  # as it was before parts were recorded
    assert (find_fault(root) or "").startswith(f"{shard} is not the shard that was sealed")
    spoil(Path(root, shard), 10)
    assert find_fault(root) is None


def test_verify_of_a_run_says_that_a_shard_was_appended_to(ctx: RunContext, student: Path) -> None:
    path = ctx.run_dir.read_json("manifest.json")["files"][0]["path"]
    shard = Path(ctx.run_dir.uri("completions", path))
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + b"more")
    assert find_fault(str(ctx.run_dir.root)) == (
        f"completions/{path} differs, first at byte {size:,} of {size:,}: it was appended to and has {size + 4:,} bytes"
    )


def test_verify_compares_the_manifest_itself_with_a_digest(
    ctx: RunContext, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = ctx.run_dir.phase_record("export")["manifest_sha256"]  # type: ignore[index]
    assert run_command(["verify", str(student), "--sha256", digest]) == 0
    assert run_command(["verify", str(student), "--sha256", digest[::-1]]) == 1
    assert f"MANIFEST.json has sha256 {digest}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"schema": 2}', "[]", "null", '{"schema": 2, "files": [1]}'])
def test_verify_of_a_foreign_manifest_says_so(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "MANIFEST.json").write_text(text)
    assert run_command(["verify", str(tmp_path)]) == 1
    assert "not one that this program has written" in capsys.readouterr().err
    (tmp_path / "MANIFEST.json").write_text('{"schema": 1}')
    assert "of schema 1" in (find_fault(str(tmp_path)) or "")


def test_verify_without_a_manifest_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["verify", str(tmp_path)]) == 2
    assert "has no MANIFEST.json" in capsys.readouterr().err
    assert run_command(["verify", "--help"]) == 0
    assert "stillhouse verify" in capsys.readouterr().out.split("Example:")[1]


def test_cards_and_bills_of_materials_name_the_mark_in_the_teachers_answers() -> None:
    mark = {"key_env": "MY_KEY", "key_id": "0123456789abcdef", "kind": "green_list"}
    words = sampling_words(make_config(teacher__watermark=mark))
    assert words.endswith("; with the green_list watermark of the key 0123456789abcdef")
    assert "watermark" not in sampling_words(make_config())
