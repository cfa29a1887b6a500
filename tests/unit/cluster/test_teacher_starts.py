"""The wait for the first replica of each of several teachers, one look at a time."""

from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus

from cluster.context import RunContext
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.teachers import TeacherStarts, app_name
from configs.errors import DeadlineExceeded, UserError
from configs.load import parse_run_config
from tests.unit.configs.trees import TREE
from tests.unit.services.serve_status import application, serve_status

pytestmark = pytest.mark.unit


def make_starts(tmp_path: Path, **values: Any) -> TeacherStarts:
    tree = {key: value for key, value in TREE.items() if key != "teacher"}
    teachers = {"quick": {"model": "org/small"}, "slow": {"model": "org/large"}}
    prompts = {"source": "p.jsonl", "teacher_column": "teacher"}
    changed = {"run_dir": str(tmp_path), "teachers": teachers, "prompts": prompts}
    config = parse_run_config(tree | changed | values, "here.yaml")
    return TeacherStarts(
        RunContext(config, RunDir.of(config), Progress(config.name, RunDir.of(config))), list(config.pool)
    )


def say(monkeypatch: pytest.MonkeyPatch, starts: TeacherStarts, **states: ApplicationStatus) -> None:
    """Serve says this of the teachers; a running one has a replica."""
    apps = {}
    for teacher, state in states.items():
        replicas = {"RUNNING": 1} if state is ApplicationStatus.RUNNING else {"STARTING": 1}
        apps[app_name(starts._ctx.config, teacher)] = application(replicas, state, "ValueError: no such weights")
    monkeypatch.setattr(serve, "status", lambda: serve_status(**apps))


def test_teachers_are_told_as_they_become_ready_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = make_starts(tmp_path)
    first, second = starts.loading
    looks = []
    for states in (
        {},
        {first: ApplicationStatus.DEPLOYING},
        {first: ApplicationStatus.DEPLOYING, second: ApplicationStatus.RUNNING},
        {first: ApplicationStatus.DEPLOYING, second: ApplicationStatus.RUNNING},
        {first: ApplicationStatus.RUNNING},
        {},
    ):
        say(monkeypatch, starts, **states)
        looks.append((starts.look(), list(starts.loading)))
    assert looks == [
        ([], [first, second]),
        ([], [first, second]),
        ([second], [first]),
        ([], [first]),
        ([first], []),
        ([], []),
    ]


def test_teacher_that_cannot_start_is_told_whatever_the_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = make_starts(tmp_path)
    first, second = starts.loading
    say(monkeypatch, starts, **{first: ApplicationStatus.RUNNING, second: ApplicationStatus.DEPLOY_FAILED})
    with pytest.raises(UserError, match="the teacher could not start: ValueError: no such weights"):
        starts.look()


def test_teacher_that_is_not_ready_at_its_deadline_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = make_starts(tmp_path, deadlines={"replica_start": 1e-9})
    first, second = starts.loading
    say(monkeypatch, starts, **{first: ApplicationStatus.RUNNING, second: ApplicationStatus.DEPLOYING})
    with pytest.raises(DeadlineExceeded, match=r"\(deadlines.replica_start\)"):
        starts.look()
