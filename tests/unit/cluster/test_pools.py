"""Whether teacher and student fit a cluster side by side, by its nodes."""

from dataclasses import dataclass
from typing import Any

import pytest

from cluster.pools import check_side_by_side, off_student_nodes
from cluster.session import Session, has_labels
from configs.errors import UserError
from configs.schema import Device
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit

Node = tuple[dict[str, str], dict[str, float]]
TEACHER, STUDENT = {"pool": "teacher"}, {"pool": "student"}
SPLIT = {"cluster__teacher_labels": TEACHER, "cluster__student_labels": STUDENT}


@dataclass(frozen=True, slots=True)
class FakeSession(Session):
    """A cluster of these nodes, labels and resources of each."""

    there: tuple[Node, ...] = ()
    fixed: bool = True

    def nodes(self, labels: dict[str, str] | None = None) -> list[dict[str, float]]:
        return [has for names, has in self.there if has_labels(names, labels or {})]

    def is_fixed(self) -> bool:
        return self.fixed

    def device(self, wanted: Device, accelerator_type: str | None = None) -> Device:
        return Device.GPU if any(has.get("GPU") for _, has in self.there) else Device.CPU


def check(*nodes: Node, fixed: bool = True, **changed: Any) -> None:
    settings = {"cluster__phases": "overlapped", "training__max_steps": 5, "training__num_workers": 2}
    session = FakeSession(embedded=True, there=nodes, fixed=fixed)
    check_side_by_side(make_config(**settings | changed), session)


def test_replicas_clients_and_workers_share_the_cpus_of_one_machine() -> None:
    check(({}, {"CPU": 3.5}))
    sentence = (
        r"teacher and student need 3.5 CPUs at the same time \(teacher.max_replicas 1, generation.clients 0.5, "
        r"training.num_workers 2\), and the cluster has 3; .*raise cluster.num_cpus, or set cluster.phases=in_turn"
    )
    with pytest.raises(UserError, match=sentence):
        check(({}, {"CPU": 3.0}))


def test_replicas_that_may_yet_come_and_gpus_count() -> None:
    nodes: tuple[Node, ...] = (({}, {"CPU": 32.0, "GPU": 4.0}),)
    check(*nodes, teacher__max_replicas=2)
    with pytest.raises(UserError, match=r"need 5 GPUs .*teacher.max_replicas 3, training.num_workers 2.* has 4"):
        check(*nodes, teacher__max_replicas=3)


def test_elastic_student_needs_its_fewest_workers() -> None:
    check(({}, {"CPU": 2.5}), training__num_workers=[1, 8])


def test_each_side_has_to_fit_the_nodes_with_its_labels() -> None:
    nodes: tuple[Node, ...] = ((TEACHER, {"CPU": 4.0}), (STUDENT, {"CPU": 2.0}))
    check(*nodes, teacher__max_replicas=9, **SPLIT)  # more than there is now: the teacher's own affair
    with pytest.raises(UserError, match=r"training.num_workers 3.* nodes with cluster.student_labels has 2"):
        check(*nodes, training__num_workers=3, **SPLIT)
    with pytest.raises(UserError, match=r"teacher.min_replicas 5.* nodes with cluster.teacher_labels has 4"):
        check(*nodes, teacher__min_replicas=5, teacher__max_replicas=9, **SPLIT)
    with pytest.raises(UserError, match=r"nodes with cluster.student_labels has 0"):
        check((TEACHER, {"CPU": 99.0}), **SPLIT)


def test_clients_keep_off_the_students_nodes() -> None:
    zone = {"zone": "a"}
    config = make_config(
        cluster__phases="overlapped",
        training__max_steps=5,
        cluster__teacher_labels=TEACHER | zone,
        cluster__student_labels=STUDENT | zone,
    )
    assert off_student_nodes(config) == {"pool": "!student"}
    nodes: tuple[Node, ...] = ((TEACHER, {"CPU": 1.0}), (STUDENT, {"CPU": 4.0}))
    with pytest.raises(UserError, match=r"generation.clients 0.5.* without nodes with cluster.student_labels has 1"):
        check(*nodes, **SPLIT)
    check(*nodes, ({}, {"CPU": 0.5}), **SPLIT)


def test_cluster_that_may_start_nodes_on_demand_is_not_asked() -> None:
    check(({}, {"CPU": 0.0}), fixed=False)
