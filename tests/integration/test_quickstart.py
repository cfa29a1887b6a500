"""The first command of the README, on the real parts, and all that a user does with what comes out."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.program import ROOT, Outcome, environment, processes_of, start, stillhouse

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RECIPE = "configs/recipes/quickstart.yaml"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished quickstart: its directory, what it printed, and the processes that outlived it."""

    directory: Path
    outcome: Outcome
    left_over: list[Any]
    temp_dirs: list[str]

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.directory / "report.json").read_text())
        return report


@pytest.fixture(scope="module")
def quickstart(shared_runs: Path) -> Run:
    directory, before = shared_runs / "quickstart", set(_temp_dirs())
    with start("run", RECIPE, f"run_dir={directory}") as process:
        out, err = process.communicate(timeout=800)
    return Run(
        directory,
        Outcome(process.returncode, out, err),
        processes_of(process.pid),
        sorted(set(_temp_dirs()) - before),
    )


def _temp_dirs() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("stillhouse-")]


def test_quickstart_ends_well_and_closes_the_gap(quickstart: Run) -> None:
    assert quickstart.outcome.code == 0, quickstart.outcome.err
    accuracy = quickstart.report["accuracy"]
    assert accuracy["teacher"] >= 0.98
    assert accuracy["student_before"] <= 0.05
    assert accuracy["student_after"] >= 0.90
    assert accuracy["student_control"] < accuracy["student_after"]
    assert quickstart.report["evaluation_problems"] >= 500


def test_quickstart_ledger_balances(quickstart: Run) -> None:
    ledger = quickstart.report["ledger"]
    assert ledger["planned"] == 6000
    assert ledger["pending"] == 0
    assert ledger["planned"] == ledger["accepted"] + ledger["rejected"] + ledger["failed"] + ledger["pending"]


def test_quickstart_report_has_the_documented_fields(quickstart: Run) -> None:
    report = quickstart.report
    assert 0.9 <= report["gap_closed"] <= 1.1
    assert report["tokens"]["teacher_output"] > 6000
    assert report["tokens"]["student_loss"] > 6000
    phases = {"plan", "generate", "seal", "hand_over", "train", "evaluate", "export", "total"}
    assert phases <= set(report["seconds"])
    assert report["claims"]["makers"] == []
    assert {"plan", "lineage", "claims", "admit", "release", "bom"} <= set(report["terms_cost"]["seconds"])
    assert "\nterms     " in quickstart.outcome.err
    assert "<svg" in (quickstart.directory / "report.html").read_text()


def test_quickstart_has_a_cost_ledger(quickstart: Run) -> None:
    cost = quickstart.report["cost"]
    assert cost["tokens"]["completion.teacher"] == quickstart.report["tokens"]["teacher_output"]
    assert cost["tokens"]["student_rows"] > cost["tokens"]["student_loss"]
    assert 0 < cost["flops"]["generate"] < cost["flops"]["total"]
    assert cost["flops"]["train_control"] > 0
    assert cost["usd_per_gap_point"] > 0
    assert {use["phase"] for use in cost["usage"]} >= {"make_teacher", "generate", "train", "export"}
    assert "cost      $" in quickstart.outcome.err


def test_quickstart_holds_its_estimate_against_what_happened(quickstart: Run) -> None:
    """The quickstart of the README: not calibrated, so by formula; how good it is depends on the machine."""
    estimate, seconds = quickstart.report["estimate"], quickstart.report["seconds"]
    # Another module's run may have made the teacher.
    assert [each["phase"] for each in estimate["phases"]][-3:] == ["generate", "train", "evaluate"]
    for each in estimate["phases"]:
        assert each["actual_s"] == seconds[each["phase"]]
        assert each["ratio"] == pytest.approx(each["estimated_s"] / each["actual_s"], abs=1e-3)
    assert estimate["total"]["actual_usd"] > 0
    assert "\nestimate  " in quickstart.outcome.err
    assert "What was expected" in (quickstart.directory / "report.html").read_text()
    assert ", of the run " in quickstart.outcome.err  # the time left, beside that of the phase


def test_quickstart_release_is_verified_and_its_data_card_loads(quickstart: Run) -> None:
    import datasets
    from huggingface_hub import ModelCard

    outcome = stillhouse("verify", str(quickstart.directory))
    assert outcome.code == 0, outcome.err
    card = ModelCard.load(quickstart.directory / "student" / "hf" / "README.md")
    assert card.data.eval_results[0].metric_value == quickstart.report["accuracy"]["student_after"]
    rows = datasets.load_dataset(
        str(quickstart.directory), split="train", cache_dir=str(quickstart.directory / "cache")
    )
    assert len(rows) == quickstart.report["ledger"]["planned"]
    assert sum(status == "accepted" for status in rows["status"]) == quickstart.report["ledger"]["accepted"]


def test_quickstart_leaves_no_process_and_no_temporary_directory(quickstart: Run) -> None:
    assert quickstart.left_over == []
    assert quickstart.temp_dirs == []


def test_quickstart_prints_progress_as_lines_in_a_log(quickstart: Run) -> None:
    lines = quickstart.outcome.err.splitlines()
    assert any(line.startswith("generate") and "tokens per s" in line for line in lines)
    assert any(line.startswith("train") and "loss" in line for line in lines)
    assert not any(line.startswith("ledger") and "0 accepted" in line for line in lines)


def test_finished_run_does_no_work_again(quickstart: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in quickstart.directory.rglob("*.json")}
    again = stillhouse("run", RECIPE, f"run_dir={quickstart.directory}")
    assert again.code == 0, again.err
    assert "done in" not in again.err  # no phase was done
    changed = {
        path.name for path, time in before.items() if path.stat().st_mtime_ns != time and path.name != "progress.json"
    }
    assert changed <= {"config.json"}


def test_status_of_a_finished_run_shows_phases_and_rows(quickstart: Run) -> None:
    outcome = stillhouse("status", RECIPE, f"run_dir={quickstart.directory}")
    assert outcome.code == 0
    assert "not running" in outcome.out
    assert "6,000 planned" in outcome.out


def test_held_out_problems_are_in_no_training_prompt(quickstart: Run) -> None:
    import polars

    prompts = polars.read_delta(str(quickstart.directory / "prompts"))
    held_out = polars.read_delta(str(quickstart.directory / "evaluation" / "prompts"))
    lessons = next((quickstart.directory.parent / ".cache").rglob("lessons.parquet"))
    assert held_out.height >= 500
    assert held_out.join(prompts, on="prompt", how="inner").height == 0
    assert held_out.join(polars.read_parquet(lessons), on="prompt_id", how="inner").height == 0


def test_completions_are_read_by_pandas_polars_and_duckdb(quickstart: Run) -> None:
    import duckdb
    import polars
    from deltalake import DeltaTable

    table = DeltaTable(str(quickstart.directory / "completions"))
    accepted = quickstart.report["ledger"]["accepted"]
    frame = table.to_pandas(columns=["status"])
    assert int((frame["status"] == "accepted").sum()) == accepted
    lazy = polars.scan_delta(str(quickstart.directory / "completions"))
    assert lazy.filter(polars.col("status") == "accepted").select(polars.len()).collect().item() == accepted
    dataset = table.to_pyarrow_dataset()
    assert dataset.schema.names[0] == "prompt_id"
    assert duckdb.sql("select count(*) from dataset where status = 'accepted'").fetchall() == [(accepted,)]


def test_every_row_has_its_lineage_and_every_file_its_specification(quickstart: Run) -> None:
    import pyarrow.parquet as pq
    from deltalake import DeltaTable

    table = DeltaTable(str(quickstart.directory / "completions"))
    columns = ["teacher_repo", "teacher_license", "prompt_source", "prompt_license"]
    columns += ["sampling", "engine", "template", "decision"]
    rows = table.to_pyarrow_table(columns=columns)
    assert all(rows.column(name).null_count == 0 for name in columns)
    assert set(rows.column("teacher_license").to_pylist()) == {"stillhouse-home-made"}
    files = [quickstart.directory / "completions" / path for path in table.get_add_actions()["path"].to_pylist()]
    specs = {json.dumps(_spec(path), sort_keys=True) for path in files}
    assert len(specs) == 1
    assert json.loads(specs.pop())["template"] == rows.column("template")[0].as_py()
    lineage = [*columns, "teacher_revision", "terms_id"]
    metadata = [pq.ParquetFile(path).metadata for path in files]
    groups = [each.row_group(number) for each in metadata for number in range(each.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    # Some bytes a file and none a row: rows of forty tokens are too small for a share to say anything.
    size = sum(each.total_compressed_size for each in chunks if each.path_in_schema in lineage)
    assert size <= 2048 * len(files)
    manifest = json.loads((quickstart.directory / "manifest.json").read_text())
    assert [each["rows"] for each in manifest["lineage"]] == [6000]


def test_file_that_went_astray_tells_where_it_came_from(quickstart: Run, tmp_path: Path) -> None:
    stray = tmp_path / "stray.parquet"
    stray.write_bytes(next((quickstart.directory / "completions").glob("*.parquet")).read_bytes())
    outcome = stillhouse("terms", "trace", str(stray))
    assert outcome.code == 0, outcome.err
    assert "of the run quickstart" in outcome.out
    assert "teacher the home-made teacher: stillhouse-home-made" in outcome.out


def _spec(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    spec: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"stillhouse.generation_spec"])
    return spec


def test_student_is_an_ordinary_hugging_face_model(quickstart: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = quickstart.directory / "student" / "hf"
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    chat = [{"role": "user", "content": "347+285="}]
    inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True, add_generation_prompt=True)
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "7+5+0=12;4+8+1=13;3+2+1=6;632"


def test_student_is_served_by_vllm(quickstart: Run) -> None:
    script = (
        "import sys; from vllm import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], dtype='float32', enforce_eager=True, max_model_len=96)\n"
        "chat = [{'role': 'user', 'content': '347+285='}]\n"
        "out = llm.chat(chat, SamplingParams(max_tokens=40, temperature=0), use_tqdm=False)\n"
        "print('answer', out[0].outputs[0].text)\n"
    )
    vllm = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(quickstart.directory / "student" / "hf")],
        cwd=ROOT,
        env=environment() | vllm,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "answer 7+5+0=12;4+8+1=13;3+2+1=6;632" in done.stdout, done.stderr[-2000:]
