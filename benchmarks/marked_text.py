"""A language and a student that cost nothing, for the audit's calibration: random bigrams, and a table of counts.

Shapes: B texts at a time, V vocabulary, K = ``context_tokens``.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.marks import ContextSeeds, Int64s, choose_gumbel, favour_green, pack, uniforms
from services.watermark.students import Differences, FreshContexts

SPREAD = 2.0  # of the bigrams' logits: about 3.6 of 5.5 nats a token, with 256 tokens
OWN_SHARE = 0.7  # of a student's prediction that is what it saw after the very context, where it saw any


class BigramTeacher:
    """A language of random bigrams, whose texts may be marked as the teacher's engine marks them."""

    def __init__(self, vocabulary: int = 256, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits_VV = SPREAD * torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64)

    def write(
        self,
        num_texts: int,
        length: int,
        seed: int,
        key: WatermarkKey | None = None,
        scheme: WatermarkScheme | None = None,
    ) -> list[list[int]]:
        """Texts of ``length`` tokens; those of a seed are the same. With ``channels``, text i takes channel i."""
        generator = torch.Generator().manual_seed(seed)
        vocabulary = len(self.logits_VV)
        texts = torch.randint(vocabulary, (num_texts, 1), generator=generator).tolist()
        used: list[set[bytes]] = [set() for _ in texts]
        for _ in range(length - 1):
            logits_BV = self.logits_VV[[text[-1] for text in texts]]
            drawn = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
            if key is not None and scheme is not None:
                drawn = _mark(drawn, logits_BV, texts, used, key, scheme, generator)
            for text, token in zip(texts, drawn.tolist(), strict=True):
                text.append(token)
        return texts


def _mark(
    drawn: torch.Tensor,
    logits_BV: torch.Tensor,
    texts: list[list[int]],
    used: list[set[bytes]],
    key: WatermarkKey,
    scheme: WatermarkScheme,
    generator: torch.Generator,
) -> torch.Tensor:
    """The tokens with the mark in place of those drawn without, where a text's context is whole and new."""
    seeds = [ContextSeeds(key, channel) for channel in range(scheme.channels)]
    marked, values = [], []
    for row, text in enumerate(texts):
        context = pack(text[-scheme.context_tokens :])
        if len(text) >= scheme.context_tokens and context not in used[row]:
            used[row].add(context)
            marked.append(row)
            values.append(seeds[row % scheme.channels].seed(context))
    if not marked:
        return drawn
    uniforms_BV = uniforms(torch.tensor(values), torch.arange(logits_BV.shape[1])[None])
    if scheme.kind is WatermarkKind.GUMBEL:
        chosen = choose_gumbel(logits_BV[marked], uniforms_BV)
    else:
        favoured = favour_green(logits_BV[marked], uniforms_BV, scheme).softmax(-1)
        chosen = torch.multinomial(favoured, 1, generator=generator)[:, 0]
    return drawn.index_copy(0, torch.tensor(marked), chosen)


class CountingStudent:
    """Predicts what it saw after the very context, smoothed by what it saw after the last token."""

    def __init__(self, texts: Iterable[Sequence[int]], width: int, vocabulary: int) -> None:
        self._width = width
        self._own: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
        bigrams = np.ones((vocabulary, vocabulary))
        for text in texts:
            np.add.at(bigrams, (text[:-1], text[1:]), 1)
            for place in range(width, len(text)):
                self._own[pack(text[place - width : place])][text[place]] += 1
        self._bigrams_VV = bigrams / bigrams.sum(axis=1, keepdims=True)

    def predict(self, context: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
        """Probabilities (V,) of the token after a context."""
        predicted = self._bigrams_VV[context[-1]]
        if (own := self._own.get(pack(context))) is None:
            return predicted
        predicted = (1 - OWN_SHARE) * predicted
        for token, count in own.items():
            predicted[token] += OWN_SHARE * count / own.total()
        return predicted


def find_count_differences(
    student: CountingStudent, base: CountingStudent, texts: Iterable[Sequence[int]], scheme: WatermarkScheme, limit: int
) -> Differences:
    """Both students' predictions at the first ``limit`` places of the texts whose context is new."""
    fresh, contexts = FreshContexts(scheme), list[Sequence[int]]()
    for text in texts:
        places = fresh.take((), text, limit - len(contexts))
        contexts += [text[place - scheme.context_tokens : place] for place in places]
    values = np.stack([student.predict(context) - base.predict(context) for context in contexts])
    tokens: Int64s = np.broadcast_to(np.arange(values.shape[1]), values.shape).copy()
    return Differences(np.asarray(contexts, dtype=np.int64), tokens, torch.from_numpy(values))
