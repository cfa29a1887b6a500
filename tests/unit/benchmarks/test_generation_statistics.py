"""The numbers of `benchmarks.generation`: workloads, steady state, ratios and the table. No engine, no clock."""

import math

import numpy as np
import pytest

from benchmarks.generation.arm import check_tokens
from benchmarks.generation.arms import RowDone
from benchmarks.generation.comparisons import COMPARISONS, Comparison, Measure
from benchmarks.generation.engine import find_difference
from benchmarks.generation.statistics import Completion, Phases, cut_phases
from benchmarks.generation.table import HEADER, Outcome, Sample, format_table
from benchmarks.generation.workloads import (
    PREFIX_TOKENS,
    ROWS_PER_PREFIX,
    TAIL_P99_OVER_P50,
    Name,
    build_workload,
    duplicated,
    shuffled,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", list(Name))
def test_workload_same_seed_same_rows(name: Name) -> None:
    assert build_workload(name, 64, seed=3) == build_workload(name, 64, seed=3)
    assert build_workload(name, 64, seed=3) != build_workload(name, 64, seed=4)


@pytest.mark.parametrize("name", list(Name))
def test_workload_counts_samples_as_rows(name: Name) -> None:
    assert sum(row.n for row in build_workload(name, 64, seed=0)) == 64


@pytest.mark.parametrize("num_rows", [256, 1024])
def test_long_tail_lengths_have_the_asked_spread_whatever_the_number_of_rows(num_rows: int) -> None:
    lengths = [row.max_tokens for row in build_workload(Name.LONG_TAIL, num_rows, seed=0)]
    p50, p99 = np.quantile(lengths, [0.5, 0.99])
    assert p99 / p50 == pytest.approx(TAIL_P99_OVER_P50, rel=0.1)


def test_long_tail_total_does_not_depend_on_the_seed() -> None:
    first, second = (build_workload(Name.LONG_TAIL, 256, seed) for seed in (0, 1))
    assert sum(row.max_tokens for row in first) == sum(row.max_tokens for row in second)


def test_prefix_groups_share_their_prefix_and_no_other() -> None:
    prefixes = [tuple(row.token_ids[:PREFIX_TOKENS]) for row in build_workload(Name.PREFIX, 4 * ROWS_PER_PREFIX, 0)]
    assert len(set(prefixes)) == 4
    assert all(len(set(prefixes[i : i + ROWS_PER_PREFIX])) == 1 for i in range(0, len(prefixes), ROWS_PER_PREFIX))


def test_shuffled_keeps_the_rows_and_numbers_them_anew() -> None:
    rows = build_workload(Name.PREFIX, 64, seed=0)
    mixed = shuffled(rows, seed=0)
    assert [row.index for row in mixed] == list(range(64))
    assert sorted(row.token_ids for row in mixed) == sorted(row.token_ids for row in rows)
    assert [row.token_ids for row in mixed] != [row.token_ids for row in rows]


def test_duplicated_makes_a_row_of_each_sample() -> None:
    rows = build_workload(Name.N4, 16, seed=0)
    singles = duplicated(rows)
    assert [row.token_ids for row in singles[:5]] == [rows[0].token_ids] * 4 + [rows[1].token_ids]
    assert sum(row.num_tokens for row in singles) == sum(row.num_tokens for row in rows)


def test_temperature_is_greedy_unless_a_prompt_has_several_samples() -> None:
    samples = build_workload(Name.N4, 8, 0)
    assert {row.temperature for row in build_workload(Name.FIXED, 4, 0)} == {0.0}
    assert {row.temperature for row in (*samples, *duplicated(samples))} == {1.0}


def test_check_tokens_refuses_a_row_of_other_length() -> None:
    rows = build_workload(Name.FIXED, 2, seed=0)
    good = RowDone(0, rows[0].num_tokens, 0.0)
    check_tokens(rows, [good, RowDone(1, rows[1].num_tokens, 0.0)])
    with pytest.raises(RuntimeError, match="row 1 has 127 tokens and should have 128"):
        check_tokens(rows, [good, RowDone(1, 127, 0.0)])
    with pytest.raises(RuntimeError, match="1 rows came back"):
        check_tokens(rows, [good])


def test_cut_phases_even_rows_gives_their_rate() -> None:
    phases = cut_phases([Completion(float(second), 10) for second in range(1, 101)], seconds=100.0)
    assert phases.steady_tokens_per_s == pytest.approx(10.0)
    assert (phases.ramp_s, phases.tail_s) == (5.0, 4.0)


def test_cut_phases_leaves_slow_start_and_tail_out() -> None:
    slow = [Completion(50.0 + i, 10) for i in range(1, 101)]
    phases = cut_phases([*slow[:-1], Completion(1000.0, 10)], seconds=1000.0)
    assert phases.steady_tokens_per_s == pytest.approx(10.0)
    assert phases.ramp_s == pytest.approx(55.0)
    assert phases.tail_s > 800


def test_cut_phases_waves_count_the_tokens_made_between_them() -> None:
    waves = [Completion(float(wave), 10) for wave in (1, 2, 3) for _ in range(100)]
    assert cut_phases(waves, seconds=3.0).steady_tokens_per_s == pytest.approx(1000.0)


def test_cut_phases_everything_at_once_has_no_steady_state() -> None:
    assert math.isnan(cut_phases([Completion(1.0, 10)] * 10, seconds=1.0).steady_tokens_per_s)


def test_find_difference_names_the_key_and_both_values() -> None:
    assert find_difference({"dtype": "float32", "threads": 1}, {"dtype": "float32", "threads": 1}) is None
    assert find_difference({"threads": 1}, {"threads": 2}) == "threads is 1 and 2"
    assert find_difference({"threads": 1}, {}) == "threads is 1 and None"


def _sample(tokens_per_s: float) -> Sample:
    return Sample(seconds=10.0, tokens=round(10 * tokens_per_s), cpu_s=5.0, phases=Phases(0.5, tokens_per_s, 0.5))


def test_long_runs_are_of_the_small_model_alone() -> None:
    assert {each.workload for each in COMPARISONS if not each.is_of("27m")} == {Name.LONG_RUN}
    assert all(each.is_of("4m") for each in COMPARISONS)


COMPARISON = Comparison("llm", Name.FIXED, {"27m": 0.97, "4m": 0.95}, Measure.STEADY)


def test_outcome_goal_counts_at_the_lower_end_of_the_interval() -> None:
    theirs = [_sample(1000)] * 3
    assert Outcome("4m", COMPARISON, [_sample(960)] * 3, theirs).is_met
    assert not Outcome("27m", COMPARISON, [_sample(960)] * 3, theirs).is_met
    assert not Outcome("4m", COMPARISON, [_sample(each) for each in (900, 1000, 1000)], theirs).is_met


def test_sample_from_answer_adds_up_rows() -> None:
    answer = {"begun": 100.0, "ended": 110.0, "cpu_s": 4.0, "completions": [(float(i), 20) for i in range(1, 11)]}
    sample = Sample.from_answer(answer)
    assert (sample.tokens, sample.tokens_per_s, sample.cpu_s_per_1000) == (200, 20.0, 20.0)


def test_format_table_says_ratio_interval_and_goal() -> None:
    head, line = format_table([Outcome("4m", COMPARISON, [_sample(900)] * 2, [_sample(1000)] * 2)]).splitlines()
    assert head == HEADER
    assert "0.900 [0.900, 0.900]" in line
    assert line.endswith("≥ 0.95 NOT MET")


def test_comparisons_have_a_goal_for_every_model() -> None:
    assert all(each.goal(model) > 0 for each in COMPARISONS for model in ("4m", "27m", "135m"))
