"""What is refused for a cluster's size, and how a cluster is known to have one."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.context import RunContext
from cluster.growth import is_fixed
from cluster.limits import UNTOLD, check_both, check_student, check_teachers
from cluster.phases.overlap import generate_and_train
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.session import Session
from configs.errors import UserError
from tests.unit.cluster.runs import record
from tests.unit.configs.trees import make_config
from tests.unit.services.shards import commit_plan, make_plan, make_prompts

pytestmark = pytest.mark.unit

HEAD, WORKER = "ab" * 28, "cd" * 28
ON_H100 = {"teacher__accelerator_type": "H100", "teacher__model": "models/large", "teacher__make": None}
EIGHT_H100 = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0}


@pytest.fixture(autouse=True)
def all_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.limits.JOIN_S", 0.0)


def v1_report(**kinds: Any) -> bytes:
    return json.dumps(
        {"autoscaler_report": {"active_nodes": {}, "pending_launches": {}, "pending_nodes": []} | kinds}
    ).encode()


@pytest.mark.parametrize(
    ("report", "is_v2", "kinds", "fixed"),
    [
        (v1_report(active_nodes={f"node_{HEAD}": 1, f"node_{WORKER}": 1}), False, ["", ""], True),
        (v1_report(active_nodes={"head.default": 1}), False, [""], False),
        (v1_report(active_nodes={f"node_{HEAD}": 1}, pending_launches={"gpu": 2}), False, [""], False),
        (
            v1_report(active_nodes={f"node_{HEAD}": 1}, pending_nodes=[["10.0.0.2", "gpu", "waiting"]]),
            False,
            [""],
            False,
        ),
        (v1_report(), False, [""], False),  # it has not seen the head yet
        (None, False, [""], False),  # nobody has reported, so nobody knows
        (None, True, ["", ""], True),
        (None, True, ["head-group", ""], False),  # of KubeRay, with or without an autoscaler
        (None, True, [], False),
    ],
)
def test_cluster_without_autoscaler_is_known_by_its_kinds_of_nodes(
    report: bytes | None, is_v2: bool, kinds: Collection[str], fixed: bool
) -> None:
    assert is_fixed(report, is_v2, {HEAD, WORKER}, kinds) is fixed


@dataclass(frozen=True, slots=True)
class FakeSession(Session):
    """A joined cluster that has so much, and may grow to the ``most`` where it has an autoscaler that tells."""

    has: Mapping[str, float] = field(default_factory=dict)
    fixed: bool = True
    most: dict[str, float] | None = None
    there: Sequence[dict[str, float]] = ()

    def nodes(self, labels: dict[str, str] | None = None) -> list[dict[str, float]]:
        return list(self.there)

    def resources(self) -> dict[str, float]:
        return dict(self.has)

    def is_fixed(self) -> bool:
        return self.fixed

    def limits(self) -> dict[str, float] | None:
        return dict(self.has) if self.fixed else self.most


def joined(has: Mapping[str, float], **growth: Any) -> FakeSession:
    return FakeSession(embedded=False, has=has, **growth)


def test_more_gpus_than_a_cluster_without_autoscaler_has_are_refused() -> None:
    check_teachers(make_config(teacher__max_replicas=9, **ON_H100), joined(EIGHT_H100), ["teacher"])
    config = make_config(teacher__min_replicas=9, teacher__max_replicas=9, **ON_H100)
    sentence = (
        r"^teacher.min_replicas: 9 GPUs are needed at the same time \(teacher.min_replicas 9\), and the cluster has 8 "
        r"and cannot grow; lower teacher.min_replicas, or add nodes$"
    )
    with pytest.raises(UserError, match=sentence):
        check_teachers(config, joined(EIGHT_H100), ["teacher"])


def test_teacher_and_clients_that_leave_a_small_cluster_too_few_cpus_are_refused() -> None:
    check_teachers(make_config(), joined({"CPU": 1.5}), ["teacher"])
    with pytest.raises(UserError, match=r"1.5 CPUs are needed .*generation.clients 0.5.* has 1 and cannot grow"):
        check_teachers(make_config(), joined({"CPU": 1.0}), ["teacher"])
    check_teachers(make_config(), joined({"CPU": 1.0}), ["teacher"], has_clients=False)
    with pytest.raises(UserError, match=r"raise cluster.num_cpus$"):
        check_teachers(make_config(), FakeSession(embedded=True, has={"CPU": 1.0}), ["teacher"])


def test_nodes_of_a_cluster_started_by_hand_may_join_after_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.limits.JOIN_S", 60.0)
    has, looks = {"CPU": 2.0}, list[float]()

    def join(seconds: float) -> None:
        looks.append(seconds)
        has["CPU"] += 1.0

    monkeypatch.setattr("time.sleep", join)
    check_student(make_config(training__num_workers=4), joined(has))
    assert len(looks) == 2


def test_student_that_a_cluster_cannot_place_is_refused_by_its_fewest_workers() -> None:
    check_student(make_config(training__num_workers=[1, 9]), joined({"CPU": 1.0}))
    with pytest.raises(UserError, match=r"^training.num_workers: 3 CPUs are needed .* has 2 and cannot grow"):
        check_student(make_config(training__num_workers=3), joined({"CPU": 2.0}))


@pytest.mark.parametrize(
    "session",
    [
        joined({"CPU": 8.0, "GPU": 1.0, "accelerator_type:A10G": 1.0}),
        joined({}, fixed=False, most={"CPU": 9.0, "GPU": 9.0}),
    ],
)
def test_gpu_type_that_will_never_be_there_is_refused(session: FakeSession) -> None:
    with pytest.raises(UserError, match=r"^teacher.accelerator_type=H100: the cluster has no GPU of that type and"):
        check_teachers(make_config(**ON_H100), session, ["teacher"])


def test_limits_that_an_autoscaler_tells_are_held_against_the_recipe() -> None:
    session = joined({"CPU": 4.0}, fixed=False, most=EIGHT_H100)
    check_teachers(make_config(teacher__min_replicas=8, teacher__max_replicas=8, **ON_H100), session, ["teacher"])
    side_by_side = {"cluster__phases": "overlapped", "training__max_steps": 5, "student__device": "gpu"}
    many = make_config(training__num_workers=8, **side_by_side, **ON_H100)
    check_student(many, session)
    with pytest.raises(UserError, match=r"9 GPUs are needed .* has 8 and its autoscaler may not start more"):
        check_both(many, session, ["teacher"])


def test_cluster_that_does_not_tell_whether_it_grows_refuses_nothing() -> None:
    config = make_config(teacher__min_replicas=99, teacher__max_replicas=99, **ON_H100)
    check_teachers(config, joined({"CPU": 1.0}, fixed=False), ["teacher"])


def planned(root: Path, **changed: Any) -> RunContext:
    """A run with rows to make."""
    config = make_config(run_dir=str(root), **changed)
    run_dir = RunDir.of(config)
    make_plan(Path(run_dir.prompts_uri), make_prompts(8))
    commit_plan(Path(run_dir.prompts_uri), Path(run_dir.completions_uri), skip=(0, 1))
    record(run_dir, "plan", rows=8, shards=2, transfer="token_ids")
    return RunContext(config, run_dir, Progress(config.name, run_dir))


@pytest.mark.parametrize(
    ("cpus", "changed", "key"),
    [
        (1.0, {}, "teacher.min_replicas and generation.clients"),
        (2.0, {"training__num_workers": 3}, "training.num_workers"),
        (
            2.0,
            {"training__num_workers": 2, "training__max_steps": 5, "cluster__phases": "overlapped"},
            "cluster.phases",
        ),
    ],
)
def test_run_that_a_cluster_cannot_do_is_refused_before_its_teacher_is_started(
    cpus: float, changed: dict[str, Any], key: str, tmp_path: Path
) -> None:
    ctx = planned(tmp_path, **changed)
    ctx._session = joined({"CPU": cpus}, there=[{"CPU": cpus}])
    with pytest.raises(UserError, match=f"^{key}"):
        generate_and_train(ctx)
    assert ctx.run_dir.phase_record("generate") is None


@pytest.mark.parametrize("fixed", [True, False])
def test_joined_cluster_that_does_not_tell_is_said_in_one_line(
    fixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = joined({"CPU": 1.0}, fixed=fixed, there=[{"CPU": 1.0}])
    monkeypatch.setattr("cluster.context.ray_session", lambda *_: nullcontext(session))
    with planned(tmp_path) as ctx:
        assert ctx.session is ctx.session
    said = [line for line in capsys.readouterr().err.splitlines() if "cluster.max_gpus" in line]
    assert said == ([] if fixed else [UNTOLD])
