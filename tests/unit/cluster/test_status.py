"""``status`` of past and running runs, from the files they leave."""

import time
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.status import STALE_S, is_running, show_status, status_lines
from configs.errors import UserError
from tests.unit.cluster.runs import make_run, record
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit


def write_progress(run_dir: RunDir, **changed: Any) -> None:
    now = time.time()
    state = {
        "run": "small",
        "phase": "generate",
        "detail": "",
        "unit": "rows",
        "done": 8,
        "total": 10,
        "numbers": {"accepted": 8},
        "updated": now,
        "written": now,
        "ended": False,
        "eta_s": 12.0,
    }
    run_dir.write_json("progress.json", state | changed)


def test_status_of_a_running_run_shows_phase_rows_and_eta(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, skip=(2,))
    write_progress(run_dir)
    assert is_running(run_dir)
    head, done, now, rows = status_lines(run_dir)
    assert head.startswith("small: running (")
    assert str(tmp_path) in head
    assert done == "done      plan 2 s"
    assert now == "now       generate  8/10 rows (80 %)  accepted 8  ETA 12 s"
    assert rows == "rows      10 planned = 8 accepted + 0 rejected + 0 failed + 2 pending"


def test_status_of_a_run_that_was_killed_is_not_running(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    long_ago = time.time() - 10 * STALE_S - 0.1
    write_progress(run_dir, written=long_ago, updated=long_ago)
    assert not is_running(run_dir)
    head, _, last, _ = status_lines(run_dir)
    assert "not running" in head
    assert "last sign 30" in head  # and some seconds, on a busy machine
    assert last == "last      generate  8/10 rows (80 %)  accepted 8"  # nobody works on it: no ETA


def test_status_of_a_run_that_has_ended_lists_every_phase(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    for phase in ("generate", "train"):
        record(run_dir, phase)
    with Progress("small", run_dir) as progress, progress.phase("train"):
        progress.expect(12, "steps")
        progress.update(done=12, loss=0.25)
    assert not is_running(run_dir)
    head, done, last, rows = status_lines(run_dir)
    assert head.startswith("small: not running")
    assert done == "done      plan 2 s, generate 20 s, train 30 s"
    assert last == "last      train  12/12 steps (100 %)  loss 0.25"
    assert rows.startswith("rows      10 planned = 10 accepted")


def test_status_before_the_plan_has_no_ledger(tmp_path: Path) -> None:
    run_dir = RunDir(UPath(tmp_path))
    write_progress(run_dir, phase="make_teacher", total=0, numbers={})
    assert status_lines(run_dir)[1:] == ["now       make_teacher  ETA 12 s"]


def test_status_without_a_run_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in") as error:
        status_lines(RunDir(UPath(tmp_path / "nowhere")))
    assert str(tmp_path / "nowhere") in str(error.value)


def test_status_that_watches_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run")
    write_progress(run_dir, ended=True)
    show_status(make_config(run_dir=str(tmp_path / "run")), watch=True)
    assert capsys.readouterr().out.splitlines() == status_lines(run_dir)


def test_status_shows_both_phases_of_a_run_that_overlaps_them(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, skip=(2,))
    train = {"phase": "train", "detail": "", "unit": "steps", "done": 1, "total": 4, "numbers": {}, "eta_s": 30.0}
    write_progress(run_dir, beside=train)
    assert "now       train  1/4 steps (25 %)  ETA 30 s" in status_lines(run_dir)
