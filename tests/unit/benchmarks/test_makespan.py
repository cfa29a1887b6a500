"""What the benchmark's student does without a cluster, and what is made of a mode's moments."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.makespan import make_config, summarise
from benchmarks.sleeping_student import read_groups, take_steps
from tests.unit.training.growing import GrowingTable
from tests.unit.training.tiny import make_job, make_rows
from training.job import TrainJob
from training.output import load_result
from training.parallel import World

pytestmark = pytest.mark.unit

ALONE = World(0, 1, torch.device("cpu"))
OPTIONS = argparse.Namespace(nodes=4, teacher_nodes=2, teacher_work=160.0, student_work=400.0, rows=64)


def answers(*told: bool) -> Callable[[], bool]:
    """A function that says this, and True ever after."""
    left = list(told)
    return lambda: left.pop(0) if left else True


@pytest.fixture
def growing(tmp_path: Path) -> tuple[GrowingTable, TrainJob]:
    table = GrowingTable(tmp_path / "completions")
    settings = {"packing_window_rows": 20, "batch_sequences": 8, "max_steps": 5}
    return table, make_job(tmp_path, 2, files=(), commits=table.commits(2), **settings)


def test_sleeping_student_takes_the_steps_that_whole_windows_allow_and_goes_on_from_there(
    growing: tuple[GrowingTable, TrainJob],
) -> None:
    table, job = growing
    table.commit({0: make_rows(30)})
    assert take_steps(job, ALONE, answers(*[False] * 4), 0.0) is None  # one window of 20 rows: two steps of eight
    lines = Path(job.output_dir, "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    table.commit({1: make_rows(10, 1)})
    result = take_steps(job, ALONE, lambda: False, 0.0)
    assert result is not None
    assert (result.num_steps, load_result(job)) == (5, result)
    assert [group["size"] for group in read_groups(job.output_dir)] == [1, 1]


def test_sleeping_student_of_sealed_files_has_all_rows(tmp_path: Path) -> None:
    job = make_job(tmp_path, 40, batch_sequences=8, max_steps=5)
    result = take_steps(replace(job, commits=None), ALONE, lambda: False, 0.0)
    assert result is not None
    assert result.num_steps == 5


def test_summary_adds_what_nodes_waited_for_workers_and_clients_to_the_bound(tmp_path: Path) -> None:
    lines = [{"time": time} for time in (120.0, 200.0, 250.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups = [{"up": 115.0, "down": 200.0, "size": 2}, {"up": 210.0, "down": 251.0, "size": 4}]
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
    found = summarise("overlapped", OPTIONS, 100.0, [105.0, 202.0], 3.0, str(tmp_path), 80.0)
    assert (found.makespan_s, found.first_step_s, found.workers) == (150.0, 20.0, [2, 4])
    assert found.starts_s == [10.0, 10.0]
    assert found.bound_s == (560 + 2 * 10 + 4 * 10 + 4 * 3) / 4


@pytest.mark.parametrize(("mode", "workers"), [("overlapped", (2, 4)), ("split", 2), ("in_turn", 4)])
def test_modes_are_recipes_of_the_same_rows_and_steps(tmp_path: Path, mode: str, workers: object) -> None:
    config = make_config(mode, tmp_path, OPTIONS)
    assert config.is_overlapped is (mode != "in_turn")
    assert (config.training.num_workers, config.training.max_steps) == (workers, 4)
