"""How a teacher's tokens are marked, as everyone must agree on it: who marks, who looks for marks, and the recipe."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, PositiveFloat

from configs.section import Section


class WatermarkKind(StrEnum):
    """How the key takes part in the choice of a token."""

    GUMBEL = "gumbel"
    GREEN_LIST = "green_list"


class WatermarkScheme(Section):
    """Everything but the key that generation and detection have to agree on."""

    kind: WatermarkKind = WatermarkKind.GUMBEL
    """``gumbel`` replaces the dice by the key (Aaronson 2022) and leaves the distribution of a token as it is;
    ``green_list`` raises the odds of a part of the vocabulary that the key chooses (Kirchenbauer et al. 2023)."""
    context_tokens: Annotated[int, Field(ge=1, le=16)] = 4
    """Tokens before a token that decide, with the key, how it is chosen. Fewer survive edits and are learnt better by
    a student, more repeat less often (tokens)."""
    channels: Annotated[int, Field(ge=1, le=1024)] = 1
    """Independent marks of one key, for ``gumbel`` with ``sampling.n`` above 1: each sample of a prompt takes another
    one, so samples differ as they would without a mark. Detection looks for all of them and is the weaker for it."""
    green_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Part of the vocabulary that is green in a context; read by ``green_list`` only."""
    green_bias: PositiveFloat = 2.0
    """What is added to the logits of green tokens, after the temperature (nats); read by ``green_list`` only."""
