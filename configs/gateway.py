"""The recipe's section ``gateway``: who outside the job may ask the teacher, and how much.

Nothing of it decides what a run makes. Keys themselves are made by ``stillhouse gateway add-key``.
"""

from enum import StrEnum
from ipaddress import ip_network
from typing import Annotated, Self

from pydantic import Field, PositiveInt, StringConstraints, field_validator, model_validator

from configs.section import Section

Country = Annotated[str, StringConstraints(pattern="^[A-Z]{2}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Stance(StrEnum):
    """What holds for regions that no list names."""

    ALLOW = "allow"
    DENY = "deny"


class SignalAction(StrEnum):
    """What a signal of abuse leads to."""

    OBSERVE = "observe"
    BLOCK = "block"


class CapsConfig(Section):
    """What one request may ask for; more is refused with 400, a body that is too large with 413."""

    n: PositiveInt = 4
    """Most completions of a request."""
    max_tokens: PositiveInt = 4096
    """Most tokens of a completion, and what a request gets that names no limit (tokens)."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 5
    """Most log-probabilities at each place; 0 refuses ``logprobs`` altogether."""
    body_kib: PositiveInt = 1024
    """Largest body of a request (KiB)."""


class KeyLimitsConfig(Section):
    """Limits of keys that have none of their own."""

    requests_per_minute: PositiveInt = 60
    """Requests in any 60 seconds."""
    tokens_per_minute: PositiveInt = 100_000
    """Tokens of prompts and completions in any 60 seconds; a request counts with the most it can use until it ends."""
    lifetime_tokens: PositiveInt | None = None
    """Tokens of prompts and completions that a key may use in its life; unset sets no end."""


class RegionsConfig(Section):
    """Regions that may ask, by the ISO code of the country that a trusted proxy writes into a header."""

    header: str | None = None
    """Header with the code, such as CF-IPCountry; unset knows no regions."""
    allow: tuple[Country, ...] = ()
    """Countries that may ask."""
    deny: tuple[Country, ...] = ()
    """Countries that may not."""
    others: Stance = Stance.ALLOW
    """What holds for countries in neither list, and for requests whose country is not known."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := sorted(set(self.allow) & set(self.deny)):
            raise ValueError(f"gateway.regions: {both[0]} is in both allow and deny; leave it in one of them")
        if self.header is None and (self.allow or self.deny or self.others is Stance.DENY):
            raise ValueError("gateway.regions.header must name the header in which the proxy writes the country")
        return self


class SignalsConfig(Section):
    """Signs of machines that harvest the teacher, over the latest requests of each key. They observe by default."""

    action: SignalAction = SignalAction.OBSERVE
    """``observe`` records a signal in the audit log and the metrics; ``block`` also refuses the request with 403."""
    window_requests: Annotated[int, Field(ge=2, le=10_000)] = 200
    """Latest requests of a key that are looked at."""
    min_requests: Annotated[int, Field(ge=2)] = 30
    """Requests of a key before anything is said of them."""
    templated: Share = 0.8
    """Share of prompts with the same shape from which they count as templated."""
    cadence: Annotated[float, Field(ge=0.0)] = 0.25
    """Variation (standard deviation over mean) of the times between requests up to which they count as a machine's;
    requests that come independently of each other have 1."""
    elicitation: Share = 0.5
    """Share of prompts that ask for the model's reasoning from which they count as elicitation."""
    keys_per_address: Annotated[int, Field(ge=2)] = 5
    """Keys of one address, among the latest requests of all keys, from which it counts as shared infrastructure."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_requests > self.window_requests:
            raise ValueError(
                f"gateway.signals.min_requests ({self.min_requests}) must not exceed gateway.signals.window_requests "
                f"({self.window_requests})"
            )
        return self


class GatewayConfig(Section):
    """The teacher for people outside the job: ``stillhouse serve`` puts API keys, limits and an audit log before it."""

    host: str = "127.0.0.1"
    """Address to listen at. It speaks plain HTTP: leave it on loopback and put a proxy with TLS before it."""
    replicas: PositiveInt = 1
    """Replicas of the gateway; they share keys, quotas, limits and the audit log."""
    directory: str | None = None
    """Local directory of keys, quotas and the audit log; unset means ``gateway`` in the run directory."""
    anchor: str | None = None
    """Local file with the audit log's length and head; unset means ``gateway-anchor.json`` in the run directory. On
    another disk, or written once only, it proves more."""
    terms: str | None = None
    """Text file of the terms of use; whoever asks has to have accepted the text as it is. Unset asks for nothing."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose word on the client's address (X-Forwarded-For) and country is taken."""
    caps: CapsConfig = CapsConfig()
    """What one request may ask for."""
    key_limits: KeyLimitsConfig = KeyLimitsConfig()
    """Limits of keys that have none of their own."""
    regions: RegionsConfig = RegionsConfig()
    """Regions that may ask."""
    signals: SignalsConfig = SignalsConfig()
    """Signs of abuse."""
    log_prompts: bool = False
    """Write prompts themselves into the audit log, and not only their digests. Tell those who ask."""

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for each in proxies:
            try:
                ip_network(each)
            except ValueError:
                raise ValueError(f"must be addresses or networks such as 10.0.0.0/8, not {each!r}") from None
        return proxies

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.regions.header is not None and not self.trusted_proxies:
            raise ValueError(
                "gateway.regions.header needs gateway.trusted_proxies: the addresses that may write that header"
            )
        return self
