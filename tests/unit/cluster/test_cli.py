"""The command line in this process: help that helps, and mistakes told in one sentence."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import run_command
from tests.unit.cluster.runs import make_finished_run
from tests.unit.configs.trees import TREE, put

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("sigterm_handler")]

COMMANDS = (
    "run",
    "plan",
    "generate",
    "train",
    "evaluate",
    "export",
    "serve",
    "report",
    "status",
    "doctor",
    "submit",
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(put(TREE, "run_dir", str(tmp_path / "run"))))
    return path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    return line


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    words = capsys.readouterr().out.split()
    assert set(COMMANDS) <= set(words)


def test_output_whose_reader_is_gone_ends_the_program_without_a_word() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "cluster", "terms", "list"]
    try:
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_ends_well_and_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"Usage: stillhouse {command}" in printed
    assert "Example:" in printed
    assert f"stillhouse {command}" in printed.split("Example:")[1]


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (["distil"], ["distil", "stillhouse --help"]),
        (["run"], ["recipe", "stillhouse --help"]),
        (["status", "recipe.yaml", "--wacht"], ["--wacht"]),
        (["serve", "recipe.yaml", "--port", "many"], ["port", "many"]),
        (["plan", "nowhere.yaml"], ["there is no recipe nowhere.yaml"]),
    ],
)
def test_mistake_in_the_command_line_is_one_sentence(
    arguments: list[str], needles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 2
    error = error_of(capsys).lower()
    for needle in needles:
        assert needle in error


@pytest.mark.parametrize("command", [each for each in COMMANDS if each != "doctor"])
def test_mistyped_key_is_told_by_every_command_before_anything_starts(
    command: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([command, str(recipe), "training.epoch=3"]) == 2
    assert "did you mean training.epochs?" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_directory_of_another_run_is_refused_with_the_key(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["report", str(recipe)]) == 2
    assert "phase plan is not done" in error_of(capsys)  # and the directory is claimed
    assert run_command(["report", str(recipe), "sampling.seed=5"]) == 2
    assert "differs in sampling.seed" in error_of(capsys)


@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_command_without_what_it_works_on_says_what_to_run_first(
    command: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([command, str(recipe), "evaluation.addition.num_problems=5"]) == 2
    assert "run `stillhouse generate` with the same recipe first" in error_of(capsys)


def test_status_without_a_run_is_refused_and_makes_no_directory(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["status", str(recipe)]) == 2
    assert "there is no run" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_submit_of_a_command_that_no_job_can_run_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["submit", str(recipe), "--command", "serve"]) == 2
    assert "--command must be one of run, plan" in error_of(capsys)


def test_submit_of_a_recipe_that_does_not_travel_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["submit", str(recipe)]) == 2
    assert f"the recipe {recipe} must lie in" in error_of(capsys)


def write_broken_progress(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "progress.json").write_text("{")


def test_fault_is_told_apart_from_a_mistake(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_broken_progress(tmp_path)
    assert run_command(["status", str(recipe)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "add --debug for the traceback" in printed
    assert "Traceback" not in printed


def test_fault_with_debug_is_raised(recipe: Path, tmp_path: Path) -> None:
    write_broken_progress(tmp_path)
    with pytest.raises(json.JSONDecodeError):
        run_command(["status", str(recipe), "--debug"])


def test_mistake_with_debug_is_raised(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="there is no recipe"):
        run_command(["plan", str(tmp_path / "nowhere.yaml"), "--debug"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_command_with_the_way_to_go_on(
    number: signal.Signals,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Terminal:
        """A user's, who presses Ctrl-C at the first word."""

        def write(self, text: str) -> None:
            signal.raise_signal(number)

        def flush(self) -> None:
            pass

    make_finished_run(tmp_path / "run")
    progress = {"run": "small", "phase": "train", "detail": "", "unit": "", "done": 0, "total": 0, "numbers": {}}
    clock = {"updated": 0.0, "written": 0.0, "ended": True, "eta_s": None}
    (tmp_path / "run" / "progress.json").write_text(json.dumps(progress | clock))
    monkeypatch.setattr(sys, "stdout", Terminal())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert run_command(["status", str(recipe)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"
