"""The learning rate over a run, and which parameters decay."""

import pytest
import torch

from configs.schema import OptimizerConfig, Schedule
from training.schedule import build_optimizer, learning_rate


def rates(schedule: Schedule, num_steps: int = 100) -> list[float]:
    config = OptimizerConfig(
        learning_rate=1.0, schedule=schedule, warmup_ratio=0.1, decay_ratio=0.2, min_learning_rate_ratio=0.1
    )
    return [learning_rate(step, num_steps, config) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_learning_rate_any_schedule_warms_up_linearly_to_the_peak(schedule: Schedule) -> None:
    assert rates(schedule)[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates(schedule)) == 1.0


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.WSD])
def test_learning_rate_decaying_schedule_ends_at_the_minimum_without_rising(schedule: Schedule) -> None:
    after = rates(schedule)[9:]
    assert after[-1] == pytest.approx(0.1)
    assert after == sorted(after, reverse=True)


def test_learning_rate_wsd_is_at_the_peak_until_the_decay() -> None:
    assert rates(Schedule.WSD)[9:80] == [1.0] * 71
    assert rates(Schedule.WSD)[80] < 1.0


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_learning_rate_very_short_run_stays_within_bounds(schedule: Schedule, num_steps: int) -> None:
    assert all(0.0 < rate <= 1.0 for rate in rates(schedule, num_steps))


def test_build_optimizer_decays_matrices_only() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, other = build_optimizer(model, OptimizerConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], [p.ndim for p in decayed["params"]]) == (0.1, [2])
    assert (other["weight_decay"], [p.ndim for p in other["params"]]) == (0.0, [1, 1, 1])
