"""The arithmetic of `benchmarks.training`: lengths, rows, runs, curves, goals and the table. No arm, no clock."""

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.statistics import Interval
from benchmarks.training.arms import WARM_UP_STEPS
from benchmarks.training.checkpoints import CHECKPOINTS, compare_modes
from benchmarks.training.comparisons import compare_arms, largest_difference
from benchmarks.training.driver import DEFAULT, QUICK
from benchmarks.training.environment import LOCK, keep_constraints
from benchmarks.training.goals import GOALS, Line, format_lines
from benchmarks.training.ladder import LADDER, Climb, format_heading, format_rung
from benchmarks.training.options import ARMS, GROUPS, parse_options
from benchmarks.training.packing import count_lost
from benchmarks.training.recovery import CHECKPOINT_EVERY, draw_kills, last_step
from benchmarks.training.shapes import END, SHAPES, SPECIAL
from benchmarks.training.throughput import Run, order_of_round, to_run
from benchmarks.training.workload import P99_OVER_P50, SHORTEST_ROW, Workload, build_rows, tail_lengths

pytestmark = pytest.mark.unit

WORKLOAD = Workload("tiny", 128, 2, num_rows=64, median_row=16, num_steps=4)


def _run(tokens_per_s: float, data_wait_s: float = 0.0, blocked_s: float = 0.0, seconds: float = 10.0) -> Run:
    return Run(seconds, round(seconds * tokens_per_s), 5.0, data_wait_s, blocked_s, (1.0,))


def _steps(seconds: Sequence[float]) -> list[dict[str, float]]:
    same = {"loss": 2.0, "loss_tokens": 100, "data_wait_s": 0.5, "checkpoint_blocked_s": 0.25}
    return [{"number": number, "seconds": each} | same for number, each in enumerate(seconds, 1)]


@pytest.mark.parametrize("num_rows", [1024, 4096])
def test_tail_lengths_have_the_asked_spread_whatever_the_number_of_rows(num_rows: int) -> None:
    p50, p99 = np.quantile(tail_lengths(num_rows, 96, 100_000), [0.5, 0.99])
    assert p50 == pytest.approx(96, abs=1)
    assert p99 / p50 == pytest.approx(P99_OVER_P50, rel=0.05)


def test_tail_lengths_stay_within_a_sequence() -> None:
    lengths = tail_lengths(4096, 4, 64)
    assert (lengths.min(), lengths.max()) == (SHORTEST_ROW, 64)


def test_build_rows_same_seed_same_rows_and_another_seed_the_same_total() -> None:
    rows, again = build_rows(WORKLOAD), build_rows(WORKLOAD)
    other = build_rows(Workload("tiny", 128, 2, num_rows=64, median_row=16, num_steps=4, seed=1))
    assert rows == again != other
    assert sum(len(p) + len(c) for p, c in rows) == sum(len(p) + len(c) for p, c in other)


def test_build_rows_completions_end_with_the_only_special_token() -> None:
    for prompt, completion in build_rows(WORKLOAD):
        assert completion[-1] == END
        assert min(*prompt, *completion[:-1]) >= SPECIAL
        assert len(prompt) >= 1


def test_to_run_leaves_the_warm_up_out_of_everything_but_the_losses() -> None:
    run = to_run(_steps([9.0] * WARM_UP_STEPS + [1.0, 3.0]), cpu_s=4.0)
    assert (run.seconds, run.loss_tokens, run.data_wait_s, run.checkpoint_blocked_s) == (4.0, 200, 1.0, 0.5)
    assert (run.tokens_per_s, run.cpu_s_per_1000) == (50.0, 20.0)
    assert len(run.losses) == WARM_UP_STEPS + 2


def test_to_run_without_a_measured_step_is_refused() -> None:
    with pytest.raises(ValueError, match="not more than the 2 of the warm-up"):
        to_run(_steps([1.0] * WARM_UP_STEPS), cpu_s=1.0)


def test_order_of_round_keeps_the_closest_arms_neighbours_both_ways() -> None:
    assert order_of_round(["torchrun", "trl-packed", "bare"], 0) == ["bare", "torchrun", "trl-packed"]
    assert order_of_round(["torchrun", "trl-packed", "bare"], 1) == ["trl-packed", "torchrun", "bare"]
    assert {*order_of_round(list(ARMS), 0)} == {*ARMS}


def test_compare_arms_compares_runs_of_the_same_rounds() -> None:
    runs = {"torchrun": [_run(1000), _run(1000), _run(5000)], "trl-packed": [_run(500), _run(500)]}
    assert {line.name: line.value.high for line in compare_arms(runs)}["trl-packed"] == 2.0


def test_compare_arms_puts_ray_train_above_torchrun_and_ours_above_the_others() -> None:
    runs = {"torchrun": [_run(1000)] * 3, "ray-train": [_run(900)] * 3, "bare": [_run(2000)] * 3, "trl-padded": []}
    lines = {line.name: line.value.median for line in compare_arms(runs)}
    assert lines == {"ray-train": 0.9, "bare": 0.5, "data-wait": 0.0}


def test_compare_arms_data_wait_is_a_part_of_the_step_time() -> None:
    [line] = compare_arms({"torchrun": [_run(1000, data_wait_s=0.05)] * 3})
    assert line.value.median == pytest.approx(0.005)
    assert line.is_met


def test_largest_difference_of_equal_curves_is_zero_and_of_broken_ones_infinite() -> None:
    assert largest_difference([3.0, 2.0], [3.0, 2.0]) == 0.0
    assert largest_difference([3.0, 2.0], [3.5, 2.25]) == 0.5
    assert largest_difference([3.0, 2.0], [3.0]) == float("inf")
    assert largest_difference([3.0, 2.0], [3.0, None]) == float("inf")


def test_compare_modes_inflation_is_over_none_and_blocked_over_synchronous() -> None:
    runs = {
        "none": [_run(100, seconds=10.0)] * 2,
        "async": [_run(100, blocked_s=0.02, seconds=10.2)] * 2,
        "sync": [_run(100, blocked_s=0.4, seconds=10.5)] * 2,
    }
    inflation, blocked = compare_modes(runs, "every 10 steps")
    assert inflation.value.median == pytest.approx(0.02)
    assert blocked.value.median == pytest.approx(0.05)
    assert blocked.note == f"{1000 * 0.4 / CHECKPOINTS:.0f} ms a synchronous one"


@pytest.mark.parametrize("seed", range(20))
def test_draw_kills_leave_a_checkpoint_before_each(seed: int) -> None:
    first, second = draw_kills(DEFAULT.recovery.num_steps, seed)
    assert first > CHECKPOINT_EVERY
    assert first + CHECKPOINT_EVERY < second < DEFAULT.recovery.num_steps


def test_last_step_before_the_first_line_is_zero() -> None:
    assert (last_step([]), last_step([{"step": 1}, {"step": 2}])) == (0, 2)


def test_count_lost_finds_missing_doubled_and_squeezed_rows() -> None:
    lengths = np.array([3, 5, 2, 6])
    packed = np.array([3, 2, 1, 0])
    assert count_lost(lengths, packed, np.array([0, 2, 4]), 8) == 0
    assert count_lost(lengths, packed[:3], np.array([0, 2, 3]), 8) == 3
    assert count_lost(lengths, np.array([3, 2, 1, 1]), np.array([0, 2, 4]), 10) == float("inf")
    assert count_lost(lengths, packed, np.array([0, 2, 4]), 7) == float("inf")


@pytest.mark.parametrize(("low", "is_met"), [(0.98, True), (0.979, False)])
def test_goal_of_a_least_value_counts_at_the_lower_end(low: float, is_met: bool) -> None:
    assert GOALS["bare"].is_met_by(Interval(1.0, low, 1.1)) is is_met


@pytest.mark.parametrize(("high", "is_met"), [(0.03, True), (0.031, False)])
def test_goal_of_a_largest_value_counts_at_the_upper_end(high: float, is_met: bool) -> None:
    assert GOALS["checkpoint-inflation"].is_met_by(Interval(0.0, -0.01, high)) is is_met


def test_format_lines_says_median_interval_goal_and_note() -> None:
    table = format_lines([Line("bare", Interval(0.9, 0.85, 0.95), "by CPU-seconds 0.9"), Line("packing-lost", _at(0))])
    head, bare, lost = table.splitlines()
    assert head.split() == ["what", "median", "95", "%", "interval", "goal"]
    assert "0.900   [0.850, 0.950]  ≥ 0.98  NOT MET  by CPU-seconds 0.9" in bare
    assert lost.endswith("≤ 0     met")


def test_keep_constraints_leaves_the_builds_of_torch_to_pip() -> None:
    kept = {line.split("==")[0] for line in keep_constraints(LOCK.read_text().splitlines())}
    assert "transformers" in kept
    assert not kept & {"torch", "torchvision", "torchaudio", "torchcodec"}


def test_shapes_are_of_the_size_in_their_names() -> None:
    millions = {name: shape.num_parameters() / 1e6 for name, shape in SHAPES.items()}
    assert millions["0.6b"] == pytest.approx(596, rel=0.01)
    assert millions["8b"] == pytest.approx(8190, rel=0.01)
    assert (round(millions["29m"]), round(millions["80m"])) == (29, 80)


def test_ladder_changes_one_thing_a_rung() -> None:
    for below, above in pairwise(LADDER):
        names = ("is_packed", "is_compiled", "has_linear_loss", "is_checkpointed")
        assert sum(getattr(below, name) != getattr(above, name) for name in names) == 1


def test_format_rung_without_a_known_peak_has_no_mfu() -> None:
    result = {"tokens_per_s": 71_234.0, "loss_tokens_per_s": 50_000.0, "mfu": None, "peak_gib": 63.25, "loss": 8.3}
    assert format_rung(LADDER[0], result).split()[-5:] == ["71,234", "50,000", "-", "63.25", "8.3000"]
    assert "45.1%" in format_rung(LADDER[0], result | {"mfu": 0.451})
    assert format_rung(LADDER[0], {"error": "out of memory"}).endswith("out of memory")
    assert "595,984,384 parameters" in format_heading(Climb("t", "0.6b", "cuda", "bfloat16", 8192, 10)).splitlines()[0]


def test_options_default_to_everything_and_no_ladder() -> None:
    options = parse_options([])
    assert (options.lines, options.arms, options.device, options.pairs) == (list(GROUPS), list(ARMS), None, None)


def test_workloads_go_through_json_unchanged() -> None:
    order = json.loads(json.dumps(QUICK.throughput, default=lambda each: {k: getattr(each, k) for k in each.__slots__}))
    assert Workload(**order) == QUICK.throughput


def _at(value: float) -> Interval:
    return Interval(value, value, value)
