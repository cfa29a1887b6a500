"""The mark itself: uniform numbers from (key, channel, context, token), and how they choose tokens.

A context is digested with the key by BLAKE2b, so the key cannot be found from tokens; the digest then seeds SplitMix64,
counted by token ids, which gives a whole vocabulary at tensor speed. Integers wrap alike on every device.

Shapes: N contexts, M tokens of each, B rows of a batch, V vocabulary, K = ``context_tokens``.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey

Int64s = npt.NDArray[np.int64]


def _signed(constant: int) -> int:
    """An unsigned constant of 64 bits as the signed one with the same bits, which is what torch has."""
    return constant - (1 << 64) if constant >> 63 else constant


# Of SplitMix64 (Steele, Lea and Flood 2014).
_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 52  # so that half a step above the largest is still a float64 below 1


class ContextSeeds:
    """The seeds of contexts under one key and channel."""

    def __init__(self, key: WatermarkKey, channel: int = 0) -> None:
        self._start = hashlib.blake2b(key=key.secret, digest_size=8, person=b"stillhouse mark")
        self._start.update(channel.to_bytes(4, "little"))

    def seed(self, context: bytes) -> int:
        """The seed of one context as `pack` makes it, 64 bits and a sign."""
        hasher = self._start.copy()
        hasher.update(context)
        return int.from_bytes(hasher.digest(), "little", signed=True)

    def of(self, contexts_NK: Int64s) -> torch.Tensor:
        """The seeds of many contexts (N,), int64."""
        packed, width = contexts_NK.astype("<u4").tobytes(), 4 * contexts_NK.shape[1]
        seeds = [self.seed(packed[start : start + width]) for start in range(0, len(packed), width)]
        return torch.tensor(seeds, dtype=torch.int64)


def pack(tokens: Sequence[int]) -> bytes:
    """A context as bytes, which tell it from every other one."""
    return np.asarray(tokens, dtype="<u4").tobytes()


def uniforms(seeds_N: torch.Tensor, tokens_NM: torch.Tensor) -> torch.Tensor:
    """Numbers in (0, 1), float64 (N, M): the same for the same seed and token, independent of all others.

    ``tokens_NM`` are int64 and may be (1, M) where all contexts ask for the same tokens.
    """
    x = seeds_N[:, None] + tokens_NM * _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    x = x ^ _shift(x, 31)
    return _shift(x, 64 - _BITS).double().add_(0.5).mul_(2.0**-_BITS)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without copying the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def choose_gumbel(logits_BV: torch.Tensor, uniforms_BV: torch.Tensor) -> torch.Tensor:
    """The tokens (B,) with the largest ``log p - log(-log U)``, each with probability p over the keys."""
    return (logits_BV.double() - uniforms_BV.log().neg_().log_()).argmax(dim=-1)


def favour_green(logits_BV: torch.Tensor, uniforms_BV: torch.Tensor, scheme: WatermarkScheme) -> torch.Tensor:
    """The logits with the scheme's bias on green tokens."""
    return logits_BV + scheme.green_bias * (uniforms_BV < scheme.green_share)


def scores(uniforms_NM: torch.Tensor, scheme: WatermarkScheme) -> torch.Tensor:
    """What a token says for the mark: exponential with mean 1 for gumbel, 1 for green and 0 for others."""
    if scheme.kind is WatermarkKind.GUMBEL:
        return (-uniforms_NM).log1p_().neg_()
    return (uniforms_NM < scheme.green_share).double()


def mean_and_variance(scheme: WatermarkScheme) -> tuple[float, float]:
    """Of `scores` where tokens and key have nothing to do with each other."""
    if scheme.kind is WatermarkKind.GUMBEL:
        return 1.0, 1.0
    return scheme.green_share, scheme.green_share * (1.0 - scheme.green_share)


def contexts_and_tokens(token_ids: Sequence[int], scheme: WatermarkScheme) -> tuple[Int64s, Int64s]:
    """Every token that has a whole context before it: contexts (N, K) and tokens (N,)."""
    tokens, width = np.asarray(token_ids, dtype=np.int64), scheme.context_tokens
    if len(tokens) <= width:
        return np.zeros((0, width), np.int64), np.zeros(0, np.int64)
    return np.lib.stride_tricks.sliding_window_view(tokens[:-1], width), tokens[width:]
