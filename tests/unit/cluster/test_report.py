"""The report says what the phases recorded, and nothing before they have."""

from pathlib import Path

import pytest

from cluster.report import build_report, completion_lengths, summary_lines
from cluster.run_dir import RunDir
from configs.errors import UserError
from configs.table import RowStatus
from tests.unit.cluster.runs import ACCURACY, SECONDS, STUDENT, make_finished_run, make_run, record
from tests.unit.services.shards import commit_rows, make_row, planned_ids

pytestmark = pytest.mark.unit


def test_report_of_a_finished_run_has_every_documented_field(tmp_path: Path) -> None:
    report = build_report(make_finished_run(tmp_path), "small")
    assert (report["schema_version"], report["name"]) == (1, "small")
    assert report["ledger"] == {"planned": 10, "accepted": 10, "rejected": 0, "failed": 0, "pending": 0}
    assert report["accuracy"] == ACCURACY
    assert (report["gap_closed"], report["evaluation_problems"]) == (0.75, 500)
    assert report["tokens"] == {"teacher_output": 20, "student_loss": 321}
    assert report["training"] == {
        "num_steps": 12,
        "final_loss": 0.25,
        "evaluation_loss": 0.5,
        "rows": 10,
        "packing_fill": 0.75,
    }
    assert report["engine"] == {"engine": "in_process", "vllm_version": "1"}
    assert report["seconds"] == {**SECONDS, "total": 59.25}


def test_report_without_an_evaluation_leaves_its_numbers_out(tmp_path: Path) -> None:
    run_dir = make_finished_run(tmp_path)
    (tmp_path / "phases" / "evaluate.json").unlink()
    report = build_report(run_dir, "small")
    assert report["accuracy"] is report["gap_closed"] is report["evaluation_problems"] is None
    assert "evaluate" not in report["seconds"]
    assert report["seconds"]["total"] == 55.25
    assert not any(line.startswith(("accuracy", "gap")) for line in summary_lines(report))


@pytest.mark.parametrize("phase", ["plan", "generate", "seal", "train"])
def test_report_of_an_unfinished_run_is_refused_with_the_phase(tmp_path: Path, phase: str) -> None:
    run_dir = make_finished_run(tmp_path)
    (tmp_path / "phases" / f"{phase}.json").unlink()
    with pytest.raises(UserError, match=f"phase {phase} is not done") as error:
        build_report(run_dir, "small")
    assert str(tmp_path) in str(error.value)


def test_completion_lengths_are_sorted_by_status(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, num_prompts=6, skip=(1,))
    first, second = planned_ids(Path(run_dir.prompts_uri))[1]
    rows = [make_row(first, 0, 1, RowStatus.REJECTED), make_row(second, 0, 1, RowStatus.FAILED)]
    commit_rows(Path(run_dir.completions_uri), rows, 1)
    assert completion_lengths(run_dir) == {"accepted": [2, 2, 2, 2], "rejected": [2], "failed": [0]}


def test_summary_tells_rows_accuracy_gap_tokens_and_seconds(tmp_path: Path) -> None:
    lines = summary_lines(build_report(make_finished_run(tmp_path), "small"))
    assert lines == [
        "rows      10 planned = 10 accepted + 0 rejected + 0 failed + 0 pending",
        "accuracy  teacher 90.0%, student before 10.0%, after 70.0%, control (answers only) 30.0%"
        "  (500 held-out problems)",
        "gap       75.0% closed",
        "tokens    20 by the teacher, 321 into the student",
        "seconds   plan 2, generate 20, seal 0, hand_over 2, train 30, evaluate 4, export 1, total 59",
    ]


def test_summary_leaves_out_who_was_not_measured(tmp_path: Path) -> None:
    report = build_report(make_finished_run(tmp_path), "small")
    report["accuracy"] = {**ACCURACY, "student_control": None}
    assert "control" not in "\n".join(summary_lines(report))


def make_overlapped_run(root: Path, **changed: float) -> RunDir:
    """Of 54.75 s from GENERATE to TRAIN, 15 are those of both."""
    run_dir = make_finished_run(root)
    overlap = {"makespan_s": 37.75, "first_step_s": 4.0, "in_turn_s": 50.0, "split_s": 40.0}
    seconds = {"generate_s": SECONDS["generate"], "train_s": SECONDS["train"]}
    run_dir.write_json("phases/overlap.json", overlap | seconds | changed)
    return run_dir


def test_report_of_phases_side_by_side_counts_no_second_twice(tmp_path: Path) -> None:
    report = build_report(make_overlapped_run(tmp_path), "small")
    assert report["seconds"]["total"] == 59.25 - 15.0
    assert report["overlap"] == {"makespan_s": 37.75, "first_step_s": 4.0, "in_turn_s": 50.0, "split_s": 40.0}
    assert summary_lines(report)[-1] == (
        "overlap   38 s until the student had caught up, first step after 4 s; expected in turn 50 s, with the nodes "
        "split for good 40 s"
    )


def test_report_takes_no_overlap_of_phases_that_were_done_again_since(tmp_path: Path) -> None:
    report = build_report(make_overlapped_run(tmp_path, train_s=31.0), "small")
    assert report["overlap"] is None
    assert report["seconds"]["total"] == 59.25


def test_report_sums_what_licences_and_terms_took(tmp_path: Path) -> None:
    run_dir = make_finished_run(tmp_path)
    record(run_dir, "train", student=STUDENT, terms_s={"admit": 0.25})
    record(run_dir, "evaluate", accuracy=ACCURACY, problems=500, gap_closed=0.75, jobs={}, terms_s={"admit": 0.125})
    record(run_dir, "export", student=run_dir.student_hf, job="x", terms_s={"release": 0.5, "bom": 0.0625})
    report = build_report(run_dir, "small")
    assert report["terms_cost"] == {"seconds": {"admit": 0.375, "release": 0.5, "bom": 0.0625}, "share": 0.01582}
    assert "terms     1.58% of that, 0.94 s: admit 0.38, bom 0.06, release 0.50" in summary_lines(report)


def test_report_of_a_run_from_before_has_no_such_line(tmp_path: Path) -> None:
    report = build_report(make_finished_run(tmp_path), "small")
    assert report["terms_cost"] == {"seconds": {}, "share": 0.0}
    assert not any(line.startswith("terms") for line in summary_lines(report))
