"""Signs of machines that harvest the teacher: pure functions over the latest requests of a key. They prove nothing.

Only digests of prompts are kept, never prompts, and only in memory.
"""

import hashlib
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import fmean, pstdev

from configs.gateway import SignalsConfig

SHAPE_WORDS = 6  # of either end of a prompt: a template varies in the middle, at its start or at its end
ELICITATION = re.compile(
    r"(?i)\b(step[- ]by[- ]step|chain[- ]of[- ]thought|show (me )?(all )?(of )?your (work|reasoning|thinking|thoughts)"
    r"|(explain|describe|reveal|write (down|out)|output|print|include|give) (all |me )*(of )?your "
    r"(full |complete |hidden |internal |raw |detailed )*(reasoning|thinking|thoughts|thought process)"
    r"|think (out loud|aloud)|before (you )?answer(ing)?,? (think|reason))\b|<think(ing)?>"
)


class Signal(StrEnum):
    """What a signal is called in the audit log and the metrics."""

    TEMPLATED = "templated_prompts"
    CADENCE = "machine_cadence"
    ELICITATION = "reasoning_elicitation"
    SHARED = "shared_infrastructure"


@dataclass(frozen=True, slots=True)
class Observation:
    """One request: when (seconds), digests of both ends of its prompt's shape, whether it asks for reasoning."""

    at: float
    head: str
    tail: str
    elicits: bool


def observe(prompt: str, at: float) -> Observation:
    """What is kept of a prompt, the last that the user has said."""
    words = re.sub(r"\d+", "0", prompt.lower()).split()
    head, tail = " ".join(words[:SHAPE_WORDS]), " ".join(words[-SHAPE_WORDS:])
    return Observation(at, _digest(head), _digest(tail), ELICITATION.search(prompt) is not None)


def templated_share(observations: Sequence[Observation]) -> float:
    """Largest share of prompts that begin alike, or end alike, whatever numbers they have."""
    heads = Counter(each.head for each in observations)
    tails = Counter(each.tail for each in observations)
    return max(max(ends.values(), default=0) for ends in (heads, tails)) / max(1, len(observations))


def cadence_variation(observations: Sequence[Observation]) -> float:
    """Standard deviation over mean of the times between requests: 0 for a clock, 1 for independent arrivals."""
    times = [each.at for each in observations]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = fmean(gaps) if gaps else 0.0
    return pstdev(gaps) / mean if mean > 0.0 else 1.0


def elicitation_share(observations: Sequence[Observation]) -> float:
    """Share of prompts that ask for the model's reasoning."""
    return sum(each.elicits for each in observations) / max(1, len(observations))


def keys_of(address: str, visits: Sequence[tuple[str, str]]) -> int:
    """Keys that have asked from an address; visits are pairs of address and key."""
    return len({key for where, key in visits if where == address})


class SignalWindow:
    """The latest requests: of each key, and of all keys by address. Bounded, whatever comes."""

    def __init__(self, config: SignalsConfig) -> None:
        self._config = config
        self._of_key: dict[str, deque[Observation]] = {}
        self._visits: deque[tuple[str, str]] = deque(maxlen=config.window_requests)

    def look(self, key_id: str, address: str, observation: Observation) -> tuple[Signal, ...]:
        """Take a request in, and say what there is to say of its key."""
        latest = self._of_key.setdefault(key_id, deque(maxlen=self._config.window_requests))
        latest.append(observation)
        self._visits.append((address, key_id))
        config, found = self._config, []
        if keys_of(address, self._visits) >= config.keys_per_address:
            found.append(Signal.SHARED)
        if len(latest) >= config.min_requests:
            if templated_share(latest) >= config.templated:
                found.append(Signal.TEMPLATED)
            if cadence_variation(latest) <= config.cadence:
                found.append(Signal.CADENCE)
            if elicitation_share(latest) >= config.elicitation:
                found.append(Signal.ELICITATION)
        return tuple(found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
