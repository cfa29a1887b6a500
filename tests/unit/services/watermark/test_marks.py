"""The mark: numbers that never change, and a choice of tokens that leaves the teacher's distribution as it is."""

import numpy as np
import pytest
import torch

from services.watermark.key import WatermarkKey
from services.watermark.marks import ContextSeeds, choose_gumbel, contexts_and_tokens, favour_green, pack, uniforms
from tests.unit.services.watermark.marking import GREEN_LIST, GUMBEL, KEY, distance_from_uniform

pytestmark = pytest.mark.unit

FROZEN = [0.3472210863501287, 0.26358449745651125, 0.7899806698407107]
FROZEN += [0.5974116291004393, 0.27235262845127084, 0.7911332116395752]


def draw(key: WatermarkKey, contexts: np.ndarray, vocabulary: int, channel: int = 0) -> torch.Tensor:
    return uniforms(ContextSeeds(key, channel).of(contexts), torch.arange(vocabulary)[None])


def test_numbers_are_what_they_were_when_texts_were_marked() -> None:
    """Another number here means that no mark of the past is found any more."""
    drawn = draw(WatermarkKey.of("0123456789abcdef0123456789abcdef"), np.array([[1, 2, 3, 4], [4, 3, 2, 151_935]]), 3)
    assert drawn.flatten().tolist() == FROZEN


def test_numbers_are_uniform_and_independent_of_neighbours() -> None:
    contexts = np.arange(400)[:, None] // np.array([1, 20, 400])  # as alike as contexts can be
    drawn = draw(KEY, contexts, 50)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert distance_from_uniform(drawn.flatten().numpy()) < 1.95
    for other in (
        draw(KEY, contexts, 50, channel=1),
        draw(KEY.decoy(0), contexts, 50),
        drawn.roll(1, 0),
        drawn.roll(1, 1),
    ):
        correlation = np.corrcoef(drawn.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(drawn.numel())


def test_numbers_of_a_token_do_not_depend_on_what_else_is_asked() -> None:
    whole = draw(KEY, np.array([[1, 2, 3], [3, 2, 1]]), 100)
    seed = torch.tensor([ContextSeeds(KEY).seed(pack([3, 2, 1]))])
    assert uniforms(seed, torch.tensor([[42, 7]])).tolist() == [[whole[1, 42], whole[1, 7]]]


def test_gumbel_choice_over_many_contexts_has_the_teachers_distribution() -> None:
    contexts = np.arange(20_000)[:, None] * np.ones(3, np.int64)
    p_V = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    chosen = choose_gumbel(p_V.log().expand(len(contexts), -1), draw(KEY, contexts, 5))
    counts = torch.bincount(chosen, minlength=5).double()
    assert counts[4] == 0
    expected = 20_000 * p_V[:4].double()
    assert float(((counts[:4] - expected) ** 2 / expected).sum()) < 16.3  # chi-square with 3 degrees, p = 0.001


def test_green_tokens_are_the_scheme_s_share_and_get_its_bias() -> None:
    drawn = draw(KEY, np.arange(300).reshape(100, 3), 200)
    biased = favour_green(torch.zeros(100, 200), drawn, GREEN_LIST)
    assert set(biased.unique().tolist()) == {0.0, GREEN_LIST.green_bias}
    assert float((biased > 0).double().mean()) == pytest.approx(GREEN_LIST.green_share, abs=0.01)


def test_first_tokens_have_no_context_and_are_left_out() -> None:
    contexts, tokens = contexts_and_tokens([9, 8, 7, 6, 5], GUMBEL)
    assert contexts.tolist() == [[9, 8, 7], [8, 7, 6]]
    assert tokens.tolist() == [6, 5]
    assert len(contexts_and_tokens([9, 8, 7], GUMBEL)[1]) == 0
