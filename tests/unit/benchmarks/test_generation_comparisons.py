"""Which rows each side of a pair gets."""

import pytest

from benchmarks.generation.comparisons import COMPARISONS, Comparison
from benchmarks.generation.workloads import build_workload

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda each: f"{each.arm}-{each.workload}")
def test_no_engine_is_asked_for_a_prompt_that_its_cache_may_have(comparison: Comparison) -> None:
    asked: dict[str, set[str]] = {}
    for pair in range(3):
        for engine, is_ours in (("ours", True), (comparison.process, False)):
            rows = build_workload(comparison.workload, 64, comparison.seed(pair, is_ours=is_ours))
            prompts = {row.text for row in rows}
            assert asked.setdefault(engine, set()).isdisjoint(prompts)
            asked[engine] |= prompts


@pytest.mark.parametrize("comparison", [each for each in COMPARISONS if each.process != "ours"])
def test_two_engines_are_compared_on_the_same_rows(comparison: Comparison) -> None:
    for pair in range(3):
        assert comparison.seed(pair, is_ours=True) == comparison.seed(pair, is_ours=False)
