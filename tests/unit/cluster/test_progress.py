"""What a run shows of itself: the line, the time that is left, and the file that ``status`` reads."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from cluster.progress import Progress, ProgressState, render_line
from cluster.run_dir import RunDir

pytestmark = pytest.mark.unit

STATE: dict[str, Any] = {"phase": "generate", "done": 0, "total": 0, "unit": "", "detail": "", "numbers": {}}


@pytest.mark.parametrize(
    ("state", "eta_s", "line"),
    [
        ({}, None, "generate"),
        ({"detail": "starting Ray"}, None, "generate  starting Ray"),
        ({"done": 512, "total": 6000, "unit": "rows"}, 41.4, "generate  512/6,000 rows (9 %)  ETA 41 s"),
        ({"done": 6000, "total": 6000, "unit": "rows"}, None, "generate  6,000/6,000 rows (100 %)"),
        ({"numbers": {"loss": 0.123456, "tokens": 4100}}, None, "generate  loss 0.1235  tokens 4,100"),
        ({"numbers": {"learning_rate": 0.0002, "rate": 12345.6}}, None, "generate  learning rate 0.0002  rate 12,346"),
        (
            {"done": 1, "total": 2, "unit": "rows", "numbers": {"failed": 0}, "detail": "waiting"},
            5.0,
            "generate  1/2 rows (50 %)  failed 0  ETA 5 s  waiting",
        ),
    ],
)
def test_render_line(state: dict[str, Any], eta_s: float | None, line: str) -> None:
    assert render_line({**STATE, **state}, eta_s) == line


def test_eta_counts_from_what_this_command_has_made() -> None:
    """A resumed phase starts at 900 of 1,000: ten rows in 20 s leave 90 rows for 180 s."""
    state = ProgressState("r", total=1000, done=910, done_at_start=900, phase_started=time.time() - 20)
    assert state.eta_s == pytest.approx(180, rel=0.05)


@pytest.mark.parametrize(("done", "done_at_start", "total"), [(0, 0, 10), (5, 5, 10), (10, 0, 10), (3, 0, 0)])
def test_eta_that_nothing_tells_is_none(done: int, done_at_start: int, total: int) -> None:
    assert ProgressState("r", total=total, done=done, done_at_start=done_at_start).eta_s is None


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(UPath(tmp_path))


def test_progress_file_has_the_numbers_and_says_when_the_command_has_ended(run_dir: RunDir) -> None:
    with Progress("small", run_dir) as progress:
        with progress.phase("generate"):
            assert run_dir.read_json("progress.json")["ended"] is False
            assert run_dir.read_json("progress.json")["phase"] == "generate"
            progress.expect(100, "rows", done=20, label="rows of the teacher")
            progress.update(done=30, accepted=29, tokens_per_s=12.5, mfu=None)
            progress.update(detail="waiting")
        assert progress.label == "rows of the teacher"
    state = run_dir.read_json("progress.json")
    assert state["ended"] is True
    assert (state["run"], state["done"], state["total"], state["done_at_start"]) == ("small", 30, 100, 20)
    assert (state["numbers"], state["detail"]) == ({"accepted": 29, "tokens_per_s": 12.5}, "waiting")
    assert state["written"] >= state["updated"] >= state["phase_started"]


def test_progress_of_a_phase_starts_from_nothing(run_dir: RunDir) -> None:
    with Progress("small", run_dir) as progress:
        with progress.phase("generate"):
            progress.expect(100, "rows")
            progress.update(done=100, detail="x", accepted=100)
        with progress.phase("train"):
            state = run_dir.read_json("progress.json")
    assert (state["phase"], state["total"], state["done"], state["detail"]) == ("train", 0, 0, "")
    assert state["numbers"] == {}


def test_progress_in_a_log_is_a_line_now_and_then_and_one_at_the_end(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("small", run_dir) as progress, progress.phase("generate"):
        progress.expect(1000, "rows")
        for done in range(1000):
            progress.update(done=done)
        progress.say("a word that stays")
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "generate"
    assert "a word that stays" in lines
    assert lines[-1].startswith("generate: done in ")
    assert len(lines) < 6


def test_progress_of_a_phase_that_fails_does_not_say_done(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), Progress("small", run_dir) as progress, progress.phase("generate"):
        raise ValueError("no")
    assert "done" not in capsys.readouterr().err
    assert run_dir.read_json("progress.json")["ended"] is True


def test_phases_side_by_side_are_shown_together_and_then_the_one_that_goes_on(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("small", run_dir) as progress, progress.beside() as other:
        with other.phase("train"):
            other.expect(4, "steps", label="student")
            with progress.phase("generate"):
                state = run_dir.read_json("progress.json")
            assert (progress.label, other.label) == ("", "student")
        assert (state["phase"], state["beside"]["phase"], state["beside"]["total"]) == ("generate", "train", 4)
        with other.phase("train"):
            state = run_dir.read_json("progress.json")
            assert (state["phase"], state["beside"]) == ("train", None)
    assert "\ngenerate\ntrain  0/4 steps (0 %)\n" in capsys.readouterr().err


def test_phases_side_by_side_report_from_threads_of_their_own(run_dir: RunDir) -> None:
    with (
        Progress("small", run_dir) as progress,
        progress.beside() as other,
        other.phase("train"),
        progress.phase("generate"),
    ):
        threads = [threading.Thread(target=count_numbers, args=(side,)) for side in (progress, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    state = run_dir.read_json("progress.json")
    assert (state["phase"], len(state["numbers"])) == ("generate", 200)


def count_numbers(side: Progress) -> None:
    """New numbers, while the other side writes down what there is."""
    for number in range(200):
        side.update(**{f"number_{number}": float(number)})
