"""Whether a student has learnt from marked text: what it predicts, less what its base predicts, held against the key.

For positions with different contexts c and the difference a(v) of both models' probabilities of the next token v,
``T = sum a(v) (score(key, c, v) - mean)`` has mean 0 and variance ``variance * sum a(v)^2`` when the student does not
depend on the key: scores of different (c, v) are then independent. No assumption about text or model enters. After
Sander et al. (2024), "Watermarking makes language models radioactive", with the base subtracted and decoy keys beside.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from configs.watermark import WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.marks import ContextSeeds, Int64s, mean_and_variance, pack, scores, uniforms

_CHUNK = 1 << 18  # numbers drawn at a time, which stay in a core's cache


@dataclass(frozen=True, slots=True)
class Differences:
    """Of N positions with different contexts (N, K) the differences (N, M) at the tokens (N, M).

    Which tokens of the vocabulary are among the M may depend on the models and not on the key.
    """

    contexts_NK: Int64s
    tokens_NM: Int64s
    values_NM: torch.Tensor


@dataclass(frozen=True, slots=True)
class StudentFinding:
    """What the test says. ``z`` is standard normal for a student that does not depend on the key.

    ``rank_p`` is the share of keys, the real one among the decoys, that score as high; at least 1 / (decoys + 1).
    """

    num_positions: int
    z: float
    decoys: tuple[float, ...]

    @property
    def p(self) -> float:
        return 0.5 * math.erfc(self.z / math.sqrt(2))

    @property
    def rank_p(self) -> float:
        return (1 + sum(each >= self.z for each in self.decoys)) / (1 + len(self.decoys))

    @property
    def decoy_mean(self) -> float:
        return statistics.fmean(self.decoys)

    @property
    def decoy_sd(self) -> float:
        return statistics.stdev(self.decoys)

    @property
    def z_by_decoys(self) -> float:
        """``z`` by the decoys' own mean and spread, which also tell where contexts were too few for theirs."""
        return (self.z - self.decoy_mean) / self.decoy_sd


class FreshContexts:
    """Finds positions whose context has not been used, and that the prefix does not hold already.

    A context that was in the prefix before has shown what the key prefers after it to every model that reads along.
    """

    def __init__(self, scheme: WatermarkScheme) -> None:
        self._width = scheme.context_tokens
        self._used: set[bytes] = set()

    def take(self, prompt: Sequence[int], completion: Sequence[int], limit: int) -> list[int]:
        """At most ``limit`` places of a completion whose token is to be predicted; they count as used from now on."""
        tokens, width = [*prompt, *completion], self._width
        places, in_row = list[int](), set[bytes]()
        for place in range(width, len(tokens)):
            context = pack(tokens[place - width : place])
            if len(places) < limit and place - width >= len(prompt) and not {context} & (in_row | self._used):
                self._used.add(context)
                places.append(place - len(prompt))
            in_row.add(context)
        return places


def z_score(key: WatermarkKey, scheme: WatermarkScheme, differences: Differences) -> float:
    """The test's standard score under one key, over all channels."""
    values_NM, tokens_NM = differences.values_NM.double(), torch.from_numpy(differences.tokens_NM)
    mean, variance = mean_and_variance(scheme)
    step = max(1, _CHUNK // values_NM.shape[1])
    total = 0.0
    for channel in range(scheme.channels):
        seeds_N = ContextSeeds(key, channel).of(differences.contexts_NK)
        for start in range(0, len(seeds_N), step):
            part = slice(start, start + step)
            scored = scores(uniforms(seeds_N[part], tokens_NM[part]), scheme)
            total += float((values_NM[part] * (scored - mean)).sum())
    return total / math.sqrt(scheme.channels * variance * float((values_NM**2).sum()))


def audit_student(
    key: WatermarkKey, scheme: WatermarkScheme, differences: Differences, num_decoys: int
) -> StudentFinding:
    """Score the key and as many decoys on the same differences, of which one at least must not be 0."""
    decoys = tuple(z_score(key.decoy(number), scheme, differences) for number in range(num_decoys))
    return StudentFinding(len(differences.contexts_NK), z_score(key, scheme, differences), decoys)
