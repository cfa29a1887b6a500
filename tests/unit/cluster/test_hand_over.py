"""HAND OVER knows the placement groups of an application's replicas by the names that Serve gives them."""

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID

from cluster.phases.hand_over import is_replicas_group

pytestmark = pytest.mark.unit


def test_placement_group_of_a_replica_is_its_applications() -> None:
    group = ReplicaID("ab12", DeploymentID(name="Teacher", app_name="run-teacher")).to_full_id_str()
    assert is_replicas_group(group, "run-teacher")
    assert not is_replicas_group(group, "run")
    assert not is_replicas_group(group, "Teacher")
