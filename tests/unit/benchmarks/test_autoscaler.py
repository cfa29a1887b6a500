"""What the benchmark of the autoscaler tells Ray, and what it makes of its observations."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.autoscaled_cluster import Look, Shape, autoscaling_config
from benchmarks.autoscaler import (
    Measurement,
    Moments,
    Rows,
    count_rows,
    describe,
    idle_times,
    numbers_of_nodes,
)
from benchmarks.processes import ROOT

pytestmark = pytest.mark.unit

SHAPE = Shape(nodes=2, provider_delay_s=5.0, idle_timeout_s=6.0, look_every_s=1)
MOMENTS = Moments(demanded=100.0, asked=101.0, delivered=106.0, joined=107.0, first_row=109.5, first_shard=110.5)
LOOKS = [
    Look(0.0, {}),
    Look(1.0, {"a": False}),
    Look(2.0, {"a": True}),
    Look(3.0, {"a": True, "b": False}),
    Look(4.0, {"a": True, "b": True}),
    Look(5.0, {"a": True, "b": False}),
    Look(11.5, {"a": True}),
    Look(12.0, {"a": False}),
    Look(20.0, {}),
]


@pytest.fixture
def config() -> dict[str, Any]:
    return autoscaling_config(SHAPE, "127.0.0.1:6399", Path("events"))


def read(config: dict[str, Any]) -> Any:
    """As Ray's second autoscaler does with its file, validation included."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    return AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)


def test_ray_takes_the_configuration_and_starts_from_no_node(config: dict[str, Any]) -> None:
    taken = read(config)
    types = taken.get_node_type_configs()
    assert {name: (each.min_worker_nodes, each.max_worker_nodes) for name, each in types.items()} == {
        "ray.head.default": (0, 1),
        "teacher": (0, 2),
    }
    assert taken.get_idle_timeout_s() == 6.0
    assert taken.get_head_node_type() == "ray.head.default"
    assert taken.disable_node_updaters()


def test_ray_refuses_an_unknown_key(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        read(config | {"idle_timeout_minuets": 1})


def test_head_has_no_place_for_a_replica(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert "teacher" not in types["ray.head.default"]["resources"]
    assert types["teacher"]["resources"]["teacher"] == 1


def test_ray_finds_the_provider_by_the_name_that_is_in_the_configuration(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    assert type(provider).__name__ == "SlowProvider"
    [head] = provider.non_terminated_nodes({})
    assert head == FAKE_HEAD_NODE_ID
    assert provider.node_tags(head)[TAG_RAY_USER_NODE_TYPE] == config["head_node_type"]


def test_descendants_are_ended_with_those_whose_starter_has_ended_and_no_others() -> None:
    script = """
import psutil, subprocess, sys
from benchmarks.autoscaled_cluster import adopt_orphans, end_descendants
spared = subprocess.Popen(["sleep", "60"])
adopt_orphans()
before = {psutil.Process(spared.pid)}
child = subprocess.Popen(["sleep", "60"])
starter = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
orphan = int(subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE, check=True).stdout)
assert psutil.pid_exists(orphan)
end_descendants(before)
print(spared.poll() is None, child.poll() is None, psutil.pid_exists(orphan))
spared.kill()
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert ended.stdout.split() == ["True", "False", "False"], ended.stderr


def test_numbers_of_nodes_tell_each_change_once() -> None:
    assert numbers_of_nodes(LOOKS) == [0, 1, 2, 1, 0]


def test_idle_times_count_from_the_last_replica_to_the_look_without_the_node() -> None:
    assert idle_times(LOOKS) == [7.5, 8.5]


def test_idle_times_of_a_node_that_was_never_used_count_from_its_coming() -> None:
    assert idle_times([Look(1.0, {"a": False}), Look(4.0, {"a": False}), Look(9.0, {})]) == [8.0]


def test_idle_times_leave_out_a_node_that_is_still_there() -> None:
    assert idle_times(LOOKS[:-1]) == [7.5]


def test_count_rows_tells_lost_doubled_and_what_was_made_for_nothing() -> None:
    assert count_rows(4, [("a", 3), ("b", 4), ("b", 4)], made=20) == Rows(4, lost=2, doubled=1, tokens_again=9)
    assert count_rows(2, [("a", 3), ("b", 4)], made=7) == Rows(2, lost=0, doubled=0, tokens_again=0)


def measurement(**parts: Any) -> Measurement:
    values: dict[str, Any] = {
        "shape": SHAPE,
        "moments": MOMENTS,
        "nodes": [0, 1, 2, 1, 0],
        "rows": Rows(800, 0, 0, 0),
        "run_s": 60.0,
        "idle_s": [7.5, 8.5],
    }
    return Measurement(**values | parts)


@pytest.mark.parametrize(
    ("parts", "is_met"),
    [
        ({}, True),
        ({"moments": Moments(100.0, 101.0, 106.0, 107.0, 110.5, 111.0)}, False),  # 10.5 s; the delay and 5 s are 10
        ({"rows": Rows(800, 1, 0, 0)}, False),
        ({"rows": Rows(800, 0, 1, 0)}, False),
        ({"nodes": [0, 1, 2, 1]}, False),
        ({"idle_s": [7.5, 16.5]}, False),
    ],
)
def test_goals_are_met_only_all_together(parts: dict[str, Any], is_met: bool) -> None:
    assert measurement(**parts).meets_goals is is_met


def test_table_adds_the_parts_up_to_the_first_row() -> None:
    lines = describe(measurement()).splitlines()
    seconds = [float(line.split(" s ")[0]) for line in lines[:5]]
    assert sum(seconds[:4]) == pytest.approx(seconds[4])
    assert seconds[1] == 5.0
    assert "0 -> 1 -> 2 -> 1 -> 0" in lines[5]
