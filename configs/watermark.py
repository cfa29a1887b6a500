"""How a teacher's tokens are marked, as everyone must agree on it: who marks, who looks for marks, and the recipe."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, PositiveFloat, model_validator

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

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys that count for the kind, as JSON has them: what has to be recorded to find the mark again."""
        unused = {WatermarkKind.GUMBEL: {"green_share", "green_bias"}, WatermarkKind.GREEN_LIST: set[str]()}
        return self.model_dump(mode="json", include=WatermarkScheme.model_fields.keys() - unused[self.kind])


class WatermarkConfig(WatermarkScheme):
    """A secret key's mark on the tokens that a teacher draws; greedy answers, such as those to held-out problems, have
    none. The key itself is never in a recipe."""

    key_env: str | None = None
    """Environment variable that holds the secret key on every machine that runs a replica, and where the command is
    given; exactly one of ``key_env`` and ``key_file`` is set."""
    key_file: str | None = None
    """File that holds it, at the same path on those machines."""
    key_id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """The key's id, as ``stillhouse audit key`` prints it. Another key is refused, so that a run has one."""

    @property
    def recorded(self) -> dict[str, Any]:
        """What rows and releases say of the mark: all but where the key lies."""
        return {**self.parameters, "key_id": self.key_id}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.key_env is None) == (self.key_file is None):
            raise ValueError(
                "set exactly one of watermark.key_env (an environment variable) and watermark.key_file (a file) to "
                "where the secret key is"
            )
        return self
