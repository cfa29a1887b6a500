"""p-values of texts: uniform without the mark, tiny with it, and no smaller for repeats."""

import math

import numpy as np
import pytest

from configs.watermark import WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.texts import Evidence, TextScorer, log10_p_value, nothing_scored
from tests.unit.services.watermark.marking import (
    EIGHT_CHANNELS,
    GREEN_LIST,
    GUMBEL,
    KEY,
    OTHER_KEY,
    distance_from_uniform,
    marked_texts,
    unmarked_texts,
)

pytestmark = pytest.mark.unit

SCHEMES = pytest.mark.parametrize("scheme", [GUMBEL, EIGHT_CHANNELS, GREEN_LIST], ids=["gumbel", "channels", "green"])


def p_values(texts: list[list[int]], key: WatermarkKey, scheme: WatermarkScheme) -> list[float]:
    scorer = TextScorer(key, scheme)
    return [10 ** log10_p_value(scorer.score(text).alone, scheme) for text in texts]


def spread_out(texts: list[list[int]], key: WatermarkKey, scheme: WatermarkScheme) -> list[float]:
    """p-values of the green list, which has steps, with each step spread evenly: exactly uniform without a mark."""
    scorer, dice, values = TextScorer(key, scheme), np.random.default_rng(0), []
    for text in texts:
        found = scorer.score(text).alone
        high, low = (
            10 ** log10_p_value(Evidence(found.num_scored, found.sums + more), scheme)
            if found.sums[0] + more <= found.num_scored
            else 0.0
            for more in (0, 1)
        )
        values.append(low + dice.random() * (high - low))
    return values


@pytest.mark.parametrize("scheme", [GUMBEL, EIGHT_CHANNELS], ids=["gumbel", "channels"])
def test_p_values_of_unmarked_texts_are_uniform(scheme: WatermarkScheme) -> None:
    assert distance_from_uniform(p_values(unmarked_texts(), KEY, scheme)) < 1.95


def test_p_values_of_the_green_list_are_uniform_but_for_their_steps() -> None:
    assert distance_from_uniform(spread_out(unmarked_texts(), KEY, GREEN_LIST)) < 1.95
    values = np.sort(p_values(unmarked_texts(), KEY, GREEN_LIST))
    too_small = np.arange(1, len(values) + 1) / len(values) - values
    assert too_small.max() * math.sqrt(len(values)) < 1.95  # steps may make them larger, never smaller


@SCHEMES
def test_p_values_of_marked_texts_are_tiny_and_not_uniform(scheme: WatermarkScheme) -> None:
    values = p_values(marked_texts(scheme), KEY, scheme)
    assert distance_from_uniform(values) > 10
    assert np.median(values) < 1e-4


@SCHEMES
def test_p_values_of_marked_texts_under_another_key_are_not_small(scheme: WatermarkScheme) -> None:
    """Marked texts share phrases, so the values of a wrong key hang together: they are not to be small, is all."""
    values = p_values(marked_texts(scheme), OTHER_KEY, scheme)
    assert np.median(values) > 0.2
    assert np.mean(np.array(values) < 1e-3) < 0.02


@SCHEMES
def test_repeats_within_a_text_and_texts_that_come_twice_count_once(scheme: WatermarkScheme) -> None:
    text = unmarked_texts()[0]
    once = TextScorer(KEY, scheme).score(text).alone
    seam = scheme.context_tokens  # only the contexts across the seam are new
    many = TextScorer(KEY, scheme).score(text * 20).alone
    assert many.num_scored <= once.num_scored + seam
    scorer = TextScorer(KEY, scheme)
    scorer.score(text)
    again = scorer.score(text)
    assert again.added.num_scored == 0
    assert again.alone.num_scored == once.num_scored


def test_evidence_of_all_texts_together_is_far_beyond_that_of_one() -> None:
    scorer = TextScorer(KEY, GREEN_LIST)
    found = [scorer.score(text) for text in marked_texts(GREEN_LIST)[:50]]
    together = log10_p_value(sum((each.added for each in found), nothing_scored(GREEN_LIST)), GREEN_LIST)
    assert together < 10 * min(log10_p_value(each.alone, GREEN_LIST) for each in found)


def test_tails_are_those_of_the_gamma_and_the_binomial_distribution() -> None:
    def p(number: int, total: float, scheme: WatermarkScheme) -> float:
        return 10 ** log10_p_value(Evidence(number, np.array([total])), scheme)

    assert p(1, 3.0, GUMBEL) == pytest.approx(math.exp(-3))
    assert p(2, 3.0, GUMBEL) == pytest.approx(4 * math.exp(-3))
    assert p(1000, 1000.0, GUMBEL) == pytest.approx(0.4958, abs=1e-4)
    assert p(3, 2.0, GREEN_LIST) == pytest.approx(3 * 0.25**2 * 0.75 + 0.25**3)
    assert p(50, 0.0, GREEN_LIST) == pytest.approx(1.0)
    assert p(50, 50.0, GREEN_LIST) == pytest.approx(0.25**50)
    assert log10_p_value(nothing_scored(GUMBEL), GUMBEL) == 0.0


def test_best_of_several_channels_pays_for_the_choice() -> None:
    sums = np.zeros(8)
    sums[3] = 3.0
    alone = math.exp(-3)
    assert 10 ** log10_p_value(Evidence(1, sums), EIGHT_CHANNELS) == pytest.approx(1 - (1 - alone) ** 8)
    sums[3] = 300.0
    assert log10_p_value(Evidence(1, sums), EIGHT_CHANNELS) == pytest.approx(math.log10(8) - 300 / math.log(10))


def test_text_shorter_than_a_context_says_nothing() -> None:
    assert TextScorer(KEY, GUMBEL).score([1, 2]).alone.num_scored == 0
