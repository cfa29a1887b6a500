"""Marks on an engine's batch: which rows get one, what they become, and that samples of a prompt stay apart."""

from collections.abc import Sequence

import pytest
import torch

from configs.watermark import WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.marker import MarkedRow, Marker, Truncate
from services.watermark.marks import ContextSeeds, pack, uniforms
from services.watermark.texts import TextScorer, log10_p_value, nothing_scored
from tests.unit.services.watermark.marking import EIGHT_CHANNELS, GREEN_LIST, GUMBEL, KEY, OTHER_KEY

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
VOCABULARY = 60


def keep_all(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
    raise AssertionError("nothing is to be left out")


def marker(scheme: WatermarkScheme, truncate: Truncate = keep_all, key: WatermarkKey = KEY) -> Marker:
    return Marker(key, scheme, CPU, truncate)


def random_logits(num_rows: int, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def write(scheme: WatermarkScheme, seeds: Sequence[int], length: int, free_from: int = 0) -> list[list[int]]:
    """Samples of one prompt as an engine would draw them: by its own dice, one a seed, from what the marker leaves.

    Up to ``free_from`` the teacher is certain of each token, and so all samples begin alike.
    """
    table = random_logits(VOCABULARY, seed=1)
    dice = [torch.Generator().manual_seed(seed) for seed in seeds]
    outputs: list[list[int]] = [[] for _ in seeds]
    rows = {place: MarkedRow(output, seed) for place, (output, seed) in enumerate(zip(outputs, seeds, strict=True))}
    marking = marker(scheme)
    for step in range(length):
        logits = torch.stack([table[(sum(output[-2:]) + step) % VOCABULARY] for output in outputs])
        if step < free_from:
            logits[:, step] += 1000.0
        p = marking.mark(logits, rows).softmax(dim=-1)
        for place, output in enumerate(outputs):
            output.append(int(torch.multinomial(p[place], 1, generator=dice[place])))
    return outputs


def test_row_with_a_new_context_is_left_one_token_and_it_is_the_key_s() -> None:
    logits, row = random_logits(3), MarkedRow([7, 1, 2, 3], seed=5)
    marked = marker(GUMBEL).mark(logits.clone(), {1: row})
    assert torch.equal(marked[[0, 2]], logits[[0, 2]])
    [chosen] = marked[1].isfinite().nonzero().flatten().tolist()
    drawn = uniforms(torch.tensor([ContextSeeds(KEY).seed(pack([1, 2, 3]))]), torch.arange(VOCABULARY)[None])[0]
    # Aaronson's own form: the token with the largest U^(1/p).
    assert chosen == int((drawn.log() / logits[1].double().softmax(0)).argmax())


def test_first_tokens_and_repeated_contexts_are_left_to_the_dice() -> None:
    logits = random_logits(4)
    rows = {
        0: MarkedRow([], 0),
        1: MarkedRow([1, 2], 0),
        2: MarkedRow([1, 2, 3, 4, 1, 2, 3], 0),
        3: MarkedRow([1, 2, 3, 4, 2, 4, 3], 0),
    }
    marked = marker(GUMBEL).mark(logits.clone(), rows)
    assert torch.equal(marked[:3], logits[:3])
    assert int(marked[3].isfinite().sum()) == 1


def test_green_list_raises_green_tokens_alone() -> None:
    logits = random_logits(2)
    marked = marker(GREEN_LIST).mark(logits.clone(), {0: MarkedRow([4, 5, 6], 3)})
    raised = (marked - logits)[0]
    drawn = uniforms(torch.tensor([ContextSeeds(KEY).seed(pack([4, 5, 6]))]), torch.arange(VOCABULARY)[None])[0]
    assert torch.allclose(raised, GREEN_LIST.green_bias * (drawn < GREEN_LIST.green_share).float(), atol=1e-5)
    assert torch.equal(marked[1], logits[1])


@pytest.mark.parametrize("scheme", [GUMBEL, EIGHT_CHANNELS, GREEN_LIST], ids=["gumbel", "channels", "green"])
def test_mark_is_found_with_its_key_and_not_with_another(scheme: WatermarkScheme) -> None:
    texts = write(scheme, range(100, 108), 200)
    found = {}
    for key in (KEY, OTHER_KEY):
        scorer = TextScorer(key, scheme)
        found[key.key_id] = log10_p_value(
            sum((scorer.score(each).added for each in texts), nothing_scored(scheme)), scheme
        )
    assert found[KEY.key_id] < -12
    assert found[OTHER_KEY.key_id] > -4


def test_eight_samples_of_a_prompt_are_distinct_even_where_they_begin_alike() -> None:
    samples = write(EIGHT_CHANNELS, range(1000, 1008), 20, free_from=6)
    assert len({tuple(each[:6]) for each in samples}) == 1
    assert len({tuple(each) for each in samples}) == 8
    # With one channel all of them would follow the key to the same end; which is why the configuration refuses that.
    alike = write(GUMBEL, range(1000, 1008), 20, free_from=6)
    assert len({tuple(each) for each in alike}) == 1


def test_green_list_needs_no_channels_for_samples_to_be_distinct() -> None:
    assert len({tuple(each) for each in write(GREEN_LIST, range(1000, 1008), 20, free_from=6)}) == 8


def test_row_is_marked_alike_wherever_it_stands_and_after_a_preemption() -> None:
    logits = random_logits(1)
    output = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    grown, marking = MarkedRow([], 2), marker(EIGHT_CHANNELS)
    for token in output:  # the engine's list grows, and the row is looked at after each token
        marking.mark(random_logits(1), {0: grown})
        grown.output_ids.append(token)
    resumed = MarkedRow(list(output), 2)
    others = {place: MarkedRow([place, 8, 7, 6], place) for place in range(5)}
    alone = marking.mark(logits.clone(), {0: grown})
    among = marking.mark(torch.cat([random_logits(5), logits]), {**others, 5: resumed})
    assert torch.equal(alone[0], among[5])


def test_batch_larger_than_a_chunk_is_marked_whole() -> None:
    rows = {place: MarkedRow([place, 1, 2], place) for place in range(3)}
    marked = marker(GUMBEL).mark(torch.zeros(3, 3_000_000), rows)
    assert marked.isfinite().sum(dim=1).tolist() == [1, 1, 1]
    assert len(set(marked.argmax(dim=1).tolist())) == 3


def test_choice_is_among_the_tokens_that_top_k_and_top_p_leave() -> None:
    asked = []

    def truncate(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
        asked.append((k, p))
        kept = torch.full_like(logits, float("-inf"))
        return kept.index_copy(1, torch.tensor([11]), logits[:, [11]])

    rows = {0: MarkedRow([1, 2, 3], 0, top_k=5), 1: MarkedRow([4, 5, 6], 0)}
    marked = marker(GUMBEL, truncate).mark(random_logits(2), rows)
    assert marked.argmax(dim=1).tolist() == [11, 11]
    [(k, p)] = asked
    assert k is not None
    assert (k.tolist(), p) == ([5, VOCABULARY], None)
    marker(GUMBEL, truncate).mark(random_logits(1), {0: MarkedRow([1, 2, 3], 0, top_p=0.5)})
    assert asked[1][0] is None
    assert asked[1][1] is not None
