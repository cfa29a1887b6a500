"""A user's own prompts and models: other architectures, no verifier, text instead of token ids, prompts that grow."""

import json
import shutil
from pathlib import Path

import polars
import pytest

from tests.integration.program import stillhouse, write_lines, write_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, qwen3: Path, gpt2_without_template: Path) -> Path:
    """A Qwen3 teacher and a GPT-2 student with another tokenizer; one line of the prompts is broken."""
    directory = tmp_path_factory.mktemp("own")
    prompts = [{"prompt": f"{n}+{n}="} for n in range(20)]
    write_lines(directory / "prompts.jsonl", [*prompts, "not json", prompts[0]])
    recipe = write_recipe(
        directory / "recipe.yaml",
        teacher={"model": str(qwen3), "engine": {"dtype": "float32", "max_model_len": 64}},
        prompts={"source": str(directory / "prompts.jsonl"), "on_broken_line": "fail_row"},
        student={"model": str(gpt2_without_template)},
    )
    outcome = stillhouse("run", str(recipe))
    assert outcome.code == 0, outcome.err
    return directory


def test_rows_are_accepted_without_a_verifier_and_the_broken_line_is_a_failed_row(run: Path) -> None:
    ledger = json.loads((run / "run" / "report.json").read_text())["ledger"]
    assert ledger == {"planned": 21, "accepted": 20, "rejected": 0, "failed": 1, "pending": 0}
    failed = polars.read_delta(str(run / "run" / "completions")).filter(polars.col("status") == "failed")
    assert "prompts.jsonl:21" in failed["reason"].item()


def test_student_of_another_architecture_is_exported(run: Path) -> None:
    config = json.loads((run / "run" / "student" / "hf" / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert json.loads((run / "run" / "phases" / "plan.json").read_text())["transfer"] == "text"


def test_more_prompts_make_only_the_new_rows(run: Path) -> None:
    before = polars.read_delta(str(run / "run" / "completions"))
    with (run / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "90+9="}\n{"prompt": "91+9="}\n')
    outcome = stillhouse("run", str(run / "recipe.yaml"))
    assert outcome.code == 0, outcome.err
    after = polars.read_delta(str(run / "run" / "completions"))
    assert after.height == before.height + 2
    assert after.join(before, on=before.columns, how="semi", nulls_equal=True).height == before.height
    report = json.loads((run / "run" / "report.json").read_text())
    assert report["ledger"]["accepted"] == 22
    assert report["training"]["rows"] == 22  # the student was trained anew on all of them


def test_changed_byte_of_a_sealed_file_is_named_and_refused(run: Path) -> None:
    victim = next((run / "run" / "completions").glob("*.parquet"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    (run / "run" / "phases" / "train.json").unlink()
    shutil.rmtree(run / "run" / "training")
    outcome = stillhouse("train", str(run / "recipe.yaml"))
    assert outcome.code == 2
    assert victim.name in outcome.err
    assert "sha256" in outcome.err
