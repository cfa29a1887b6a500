"""Whether texts carry a mark: exact p-values over tokens whose context is new, so that repeats count once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.marks import ContextSeeds, contexts_and_tokens, pack, scores, uniforms


@dataclass(frozen=True, slots=True)
class Evidence:
    """Scored tokens and, of each channel, the sum of their scores. Evidence of different texts adds up."""

    num_scored: int
    sums: npt.NDArray[np.float64]

    def __add__(self, other: "Evidence") -> "Evidence":
        return Evidence(self.num_scored + other.num_scored, self.sums + other.sums)


@dataclass(frozen=True, slots=True)
class TextEvidence:
    """What a text says by itself, and what it adds to the texts before it."""

    alone: Evidence
    added: Evidence


class TextScorer:
    """Scores texts one after another.

    A context counts where it occurs first in a text, because that is where the teacher marks. Of all texts together, a
    token counts once after the same context. What is left are different pairs of context and token, whose numbers are
    independent where the text does not know the key.
    """

    def __init__(self, key: WatermarkKey, scheme: WatermarkScheme) -> None:
        self._scheme = scheme
        self._seeds = [ContextSeeds(key, channel) for channel in range(scheme.channels)]
        self._seen: set[tuple[bytes, int]] = set()

    def score(self, token_ids: Sequence[int]) -> TextEvidence:
        """What this text says."""
        contexts, tokens = contexts_and_tokens(token_ids, self._scheme)
        packed = [pack(context) for context in contexts]
        first = sorted({context: place for place, context in reversed(list(enumerate(packed)))}.values())
        pairs = [(packed[place], int(tokens[place])) for place in first]
        is_new = np.array([pair not in self._seen for pair in pairs], dtype=bool)
        self._seen.update(pairs)
        scores_CN = np.zeros((len(self._seeds), len(first)))
        chosen_N1 = torch.from_numpy(tokens[first])[:, None]
        for channel, seeds in enumerate(self._seeds):
            drawn = uniforms(seeds.of(contexts[first]), chosen_N1)
            scores_CN[channel] = scores(drawn, self._scheme)[:, 0].numpy()
        return TextEvidence(
            Evidence(len(first), scores_CN.sum(axis=1)),
            Evidence(int(is_new.sum()), scores_CN[:, is_new].sum(axis=1)),
        )


def nothing_scored(scheme: WatermarkScheme) -> Evidence:
    """Evidence of no text at all."""
    return Evidence(0, np.zeros(scheme.channels))


def log10_p_value(evidence: Evidence, scheme: WatermarkScheme) -> float:
    """Decimal logarithm of the probability that text without this mark scores as high in its best channel.

    Exact for text that does not depend on the key: sums are Gamma(n, 1) or Binomial(n, share), channels independent.
    """
    if evidence.num_scored == 0:
        return 0.0
    best = float(evidence.sums.max())
    tail = _log_gamma_tail if scheme.kind is WatermarkKind.GUMBEL else _log_binomial_tail
    log_p = min(0.0, tail(evidence.num_scored, best, scheme))
    log_p = _log_any_of(scheme.channels, log_p)
    return log_p / math.log(10)


def _log_any_of(number: int, log_p: float) -> float:
    """log(1 - (1 - p)^number)."""
    if log_p < -30:  # 1 - p is 1 to the last bit
        return log_p + math.log(number)
    p = math.exp(log_p)
    return math.log(-math.expm1(number * math.log1p(-p))) if p < 1 else 0.0


def _log_gamma_tail(count: int, total: float, _: WatermarkScheme) -> float:
    """log P(Gamma(n, 1) >= s), which is log P(Poisson(s) < n)."""
    j = torch.arange(count, dtype=torch.float64)
    return float(torch.logsumexp(j * math.log(total) - torch.lgamma(j + 1), 0)) - total


def _log_binomial_tail(count: int, total: float, scheme: WatermarkScheme) -> float:
    """log P(Binomial(n, share) >= s)."""
    n, j = torch.tensor(float(count), dtype=torch.float64), torch.arange(round(total), count + 1, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(j + 1) - torch.lgamma(n - j + 1)
    share = scheme.green_share
    return float(torch.logsumexp(ways + j * math.log(share) + (n - j) * math.log1p(-share), 0))
