"""What HAND OVER looks for, and where."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.util
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID

from cluster.context import RunContext
from cluster.phases.hand_over import hand_over, is_replicas_group
from cluster.progress import Progress
from cluster.run_dir import RunDir
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit


def test_placement_group_of_a_replica_is_its_applications() -> None:
    group = ReplicaID("ab12", DeploymentID(name="Teacher", app_name="run-teacher")).to_full_id_str()
    assert is_replicas_group(group, "run-teacher")
    assert not is_replicas_group(group, "run")
    assert not is_replicas_group(group, "Teacher")


@pytest.mark.parametrize(("address", "looks"), [("auto", 1), (None, 0)])
def test_teacher_of_a_command_that_was_killed_is_looked_for_where_a_cluster_outlives_it(
    address: str | None, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(run_dir=str(tmp_path), cluster__address=address)
    ctx = RunContext(config, RunDir.of(config), Progress(config.name, RunDir.of(config)))
    joined = list[RunContext]()
    session: Callable[[RunContext], None] = joined.append
    monkeypatch.setattr(RunContext, "session", property(session))
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={}))
    monkeypatch.setattr(ray.util, "placement_group_table", dict)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert hand_over(ctx) | {"seconds": 0} == {"waited_for": [], "seconds": 0}
    assert len(joined) == looks
