"""Worked three-digit addition: the built-in task that needs no download.

``7+5+0=12`` adds the last digits and a carry of 0; the next step takes the carry 1 from it, and so on; the last field
is the sum. Problems are split by a hash: held-out problems occur in no training prompt, whatever the seeds.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema import AdditionConfig

CHARACTERS = "0123456789+=;"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
HELD_OUT_ONE_IN = 20  # 5 % of the million problems: far more than any evaluation asks for


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, e.g. ``Problem("347+285=", "7+5+0=12;4+8+1=13;3+2+1=6;632", "632")``."""

    prompt: str
    solution: str
    answer: str


def draw_problems(config: AdditionConfig, *, held_out: bool) -> Iterator[Problem]:
    """Yield ``config.num_problems`` different problems in an order that depends on the seed alone."""
    rng = random.Random(config.seed)
    seen: set[tuple[int, int]] = set()
    while len(seen) < config.num_problems:
        pair = rng.randrange(1000), rng.randrange(1000)
        if pair in seen or is_held_out(*pair) != held_out:
            continue
        seen.add(pair)
        yield make_problem(*pair)


def is_held_out(a: int, b: int) -> bool:
    """Whether the problem ``a+b`` is reserved for evaluation."""
    return zlib.crc32(f"{a}+{b}".encode()) % HELD_OUT_ONE_IN == 0


def make_problem(a: int, b: int) -> Problem:
    """Write out ``a+b`` digit by digit, from the right."""
    steps, carry = [], 0
    for power in (1, 10, 100):
        x, y = a // power % 10, b // power % 10
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return Problem(f"{a}+{b}=", ";".join([*steps, str(a + b)]), str(a + b))
