"""What a run costs is counted over all its commands, and stops it at its limit."""

from pathlib import Path

import pytest
from upath import UPath

from cluster.budget import Budget, Rate, Spending, cluster_rate, read_spending
from cluster.run_dir import RunDir
from configs.errors import BudgetReached
from configs.prices import load_prices
from configs.schema import BudgetConfig

pytestmark = pytest.mark.unit

ONE_DOLLAR_AN_HOUR = Rate(1.0)


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(UPath(tmp_path))


def test_time_counts_from_when_there_is_a_cluster(run_dir: RunDir) -> None:
    clock, rates = Clock(), [None, ONE_DOLLAR_AN_HOUR, ONE_DOLLAR_AN_HOUR]
    budget = Budget(BudgetConfig(), run_dir, lambda: rates.pop(0), clock)
    clock.now += 600
    assert budget.spent(now=True) == Spending()
    assert budget.spent(now=True) == Spending()  # the cluster has just come
    clock.now += 1800
    assert budget.spent(now=True) == Spending(1800, 0.5)


def test_later_command_counts_on_from_what_the_earlier_one_wrote(run_dir: RunDir) -> None:
    for _ in range(2):
        clock = Clock()
        budget = Budget(BudgetConfig(), run_dir, lambda: ONE_DOLLAR_AN_HOUR, clock)
        budget.spent(now=True)
        clock.now += 3600
        budget.close()
    assert read_spending(run_dir) == Spending(7200, 2.0)


@pytest.mark.parametrize(("key", "limit"), [("max_usd", 0.5), ("max_hours", 0.5)])
def test_limit_is_reached_at_its_value_and_not_before(run_dir: RunDir, key: str, limit: float) -> None:
    clock = Clock()
    budget = Budget(BudgetConfig.model_validate({key: limit}), run_dir, lambda: ONE_DOLLAR_AN_HOUR, clock)
    budget.check()
    clock.now += 1799
    budget.check()
    clock.now += 6
    with pytest.raises(BudgetReached, match=rf"budget.{key} .*\$0.50 are spent.*raise budget.{key}"):
        budget.check()


def test_raised_limit_lets_the_run_go_on(run_dir: RunDir) -> None:
    run_dir.write_json("spending.json", {"seconds": 3600, "usd": 5.0, "unpriced": []})
    with pytest.raises(BudgetReached):
        Budget(BudgetConfig(max_usd=5.0), run_dir, lambda: None, Clock()).check()
    Budget(BudgetConfig(max_usd=6.0), run_dir, lambda: None, Clock()).check()


def test_rate_takes_gpus_by_type_and_cores_of_nodes_without_any() -> None:
    prices = load_prices()
    nodes = [
        {"CPU": 8.0, "memory": 1e9},
        {"CPU": 96.0, "GPU": 8.0, "accelerator_type:A100": 1.0, "accelerator_type:A100-80G": 1.0},
        {"CPU": 96.0, "GPU": 4.0, "accelerator_type:X1": 1.0},
    ]
    rate = cluster_rate(nodes, prices)
    large = prices.find("A100-80G")
    assert large is not None
    assert rate.usd_per_hour == pytest.approx(8 * prices.cpu_core.usd_per_hour + 8 * large.usd_per_hour)
    assert rate.unpriced == ("X1",)
