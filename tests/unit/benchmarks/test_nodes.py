"""What the benchmark of simulated nodes makes of its observations."""

import pytest

from benchmarks.nodes import count_look_ups, shard_rows, steady_rate

pytestmark = pytest.mark.unit


def test_steady_rate_leaves_a_slow_start_and_a_long_tail_out() -> None:
    start, tail = [(0.0, 10)], [(200.0, 990), (500.0, 1000)]
    steady = [(100.0 + second, 100 + 20 * second) for second in range(40)]
    assert steady_rate([*start, *steady, *tail], 1000) == pytest.approx(20.0)


def test_steady_rate_of_rows_that_come_in_lumps_is_that_of_all_lumps() -> None:
    # Ten shards at once every ten seconds: their first and last moment alone would say 11 % more.
    lumps = [(10.0 * (shard // 10), 10 * (shard + 1)) for shard in range(10, 100)]
    assert steady_rate(lumps, 1000) == pytest.approx(10.0, rel=0.03)


def test_steady_rate_without_two_moments_is_refused() -> None:
    with pytest.raises(ValueError, match="two moments"):
        steady_rate([(1.0, 500), (1.0, 600), (9.0, 1000)], 1000)


@pytest.mark.parametrize(("nodes", "rows"), [(1, 32), (16, 512), (64, 512)])
def test_shard_rows_make_many_shards_of_a_short_run_and_the_default_of_a_long_one(nodes: int, rows: int) -> None:
    assert shard_rows(nodes) == rows


def test_count_look_ups_tells_replicas_from_other_actors() -> None:
    names = ["SERVE_CONTROLLER_ACTOR", "SERVE_REPLICA::echo#echo#a", "SERVE_REPLICA::echo#echo#b"]
    assert count_look_ups(names) == (2, 1)
