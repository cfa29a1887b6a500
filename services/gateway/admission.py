"""The one place that decides who may ask and remembers what was used: keys, rates, quotas, terms, signals, audit log.

All replicas of the gateway ask it, in one process, one call after another: limits hold across replicas without locks
that would have to span machines, and the audit log's chain has one writer. Quotas and acceptances survive it; rates
and signals begin anew.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.gateway import GatewayConfig, SignalAction
from services.gateway.audit import LOG_FILE, Anchor, AuditLog
from services.gateway.keys import Key, KeyFile, to_text
from services.gateway.ledger import Ledger, read_audited
from services.gateway.rates import MINUTE_S, Entry, MinuteWindow
from services.gateway.refusals import Refusal
from services.gateway.regions import Origin, may_ask
from services.gateway.signals import Signal, SignalWindow, observe

KEYS_FILE = "keys.json"
LEDGER_FILE = "ledger.sqlite"
RETRY_QUOTA_S = 5  # reservations of requests under way may be settled for less by then

COUNTED = "stillhouse_gateway_"  # of metrics: before each name of `COUNTERS`, after `ray_`, which Ray puts there
COUNTERS = {
    "requests": ("Requests by what became of them", "outcome"),
    "tokens": ("Tokens of prompts and completions", "outcome"),
    "signals": ("Requests that showed a sign of abuse", "signal"),
}
"""What is counted, with its description and the label beside ``run``."""

Record = Callable[[str, float, Mapping[str, str]], None]
"""Is told of each: a name of `COUNTERS`, how much, and the label's value."""


@dataclass(frozen=True, slots=True)
class AdmissionSpec:
    """All that it needs: ``model`` is the one that is served, ``terms`` the text that has to be accepted, or None."""

    config: GatewayConfig
    directory: str
    anchor: str
    model: str
    terms: str | None = None

    @property
    def terms_sha256(self) -> str | None:
        """Digest of the terms as they are."""
        return None if self.terms is None else hashlib.sha256(self.terms.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Visit:
    """What is known of a request beside its key: ``prompt`` is kept only where the recipe says so."""

    origin: Origin
    path: str
    model: str = ""
    n: int = 1
    max_tokens: int = 0
    stripped: tuple[str, ...] = ()
    prompt: str = ""
    prompt_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """A reservation: ``Grant(7, 1200)`` lets a request use up to 1,200 tokens."""

    reservation: int
    tokens: int


class Admission:
    """The state of a gateway. Times come from two clocks: of the wall for people, monotonic for rates."""

    def __init__(
        self,
        spec: AdmissionSpec,
        record: Record = lambda *_: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises `UserError` when the audit log does not hold, or the ledger is gone."""
        directory = Path(spec.directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._spec, self._config = spec, spec.config
        self._record, self._clock, self._now = record, clock, now
        self._audit = AuditLog(directory / LOG_FILE, Path(spec.anchor), read_ledgered(directory))
        self._keys = KeyFile(directory / KEYS_FILE)
        self._ledger = Ledger(directory / LEDGER_FILE)
        self._signals = SignalWindow(self._config.signals)
        self._requests: dict[str, MinuteWindow] = {}
        self._tokens: dict[str, MinuteWindow] = {}
        self._open: dict[int, tuple[Entry, str]] = {}
        self._refused_at: dict[tuple[str, str], float] = {}
        leftovers = self._ledger.charge_leftovers()
        self._log("opened", model=spec.model, terms_sha256=spec.terms_sha256, unsettled_requests_charged=leftovers)

    def close(self) -> None:
        """Close the files."""
        self._ledger.close()
        self._audit.close()

    def admit(self, secret: str | None, visit: Visit) -> Refusal | None:
        """Whether a key may ask at all: key, region, model, terms, requests per minute, signals. Counts the request."""
        key = self._keys.find(secret) if secret else None
        if key is None or key.revoked is not None or key.is_expired(self._now()):
            return self._refuse(key, visit, _unknown(secret, key))
        objection = self._find_objection(key, visit)
        return None if objection is None else self._refuse(key, visit, objection)

    def list_models(self, secret: str | None, visit: Visit) -> list[str] | Refusal:
        """The models that a key may use."""
        if (refusal := self.admit(secret, visit)) is not None:
            return refusal
        key = self._keys.find(secret or "")
        return [self._spec.model] if key is not None and key.may_use(self._spec.model) else []

    def reserve(self, secret: str, visit: Visit, prompt_tokens: int) -> Grant | Refusal:
        """Set aside the most that an admitted request can use, ``prompt_tokens`` and all completions."""
        key = self._keys.find(secret)
        if key is None or key.revoked is not None:  # since it was admitted
            return self._refuse(key, visit, _unknown(secret, key))
        tokens = prompt_tokens + visit.n * visit.max_tokens
        window, now = self._window(self._tokens, key, "tokens_per_minute"), self._clock()
        if (refusal := _fits_a_minute(tokens, window, now)) is not None:
            return self._refuse(key, visit, refusal)
        quota = key.lifetime_tokens or self._config.key_limits.lifetime_tokens
        text = {"prompt": visit.prompt} if self._config.log_prompts else {}
        with self._ledger.transaction():  # nothing stays reserved for a request that the log could not take
            reservation = self._ledger.reserve(key.key_id, tokens, quota)
            if reservation is not None:
                self._log("reserved", key, visit, reservation=reservation, tokens=tokens, **text)
        if reservation is None:
            return self._refuse(key, visit, self._out_of_quota(key, tokens, quota or 0))
        self._open[reservation] = (window.add(now, tokens), key.key_id)
        return Grant(reservation, tokens)

    def settle(self, grant: Grant, used: int | None, outcome: str, completion_sha256: str = "") -> None:
        """A request has ended. ``used`` None, or more than was granted, counts as all of it."""
        tokens = grant.tokens if used is None else min(used, grant.tokens)
        if not self._ledger.settle(grant.reservation, tokens):
            return  # of an earlier process, and charged in full
        entry, key_id = self._open.pop(grant.reservation)
        entry.amount = tokens
        self._log(
            "settled",
            key_id=key_id,
            reservation=grant.reservation,
            tokens=tokens,
            outcome=outcome,
            completion_sha256=completion_sha256,
        )
        self._record("requests", 1, {"outcome": outcome})
        self._record("tokens", tokens, {"outcome": outcome})

    def accept_terms(self, secret: str | None, visit: Visit, terms_sha256: str) -> Refusal | None:
        """The holder of a key accepts the terms whose digest this is."""
        key = self._keys.find(secret) if secret else None
        if key is None or key.revoked is not None or key.is_expired(self._now()):
            return self._refuse(key, visit, _unknown(secret, key))
        if terms_sha256 != self._spec.terms_sha256:
            message = f"the terms have the digest {self._spec.terms_sha256}; read them at GET /terms"
            return Refusal(400, "other_terms", message, "sha256")
        if self._ledger.accept(key.key_id, terms_sha256, to_text(self._now())):
            self._log("terms_accepted", key, visit, terms_sha256=terms_sha256)
        return None

    def _find_objection(self, key: Key, visit: Visit) -> Refusal | None:
        if not may_ask(visit.origin.country, self._config.regions):
            return Refusal(403, "region_not_allowed", "this service is not offered where the request comes from")
        if (terms := self._spec.terms_sha256) is not None and not self._ledger.has_accepted(key.key_id, terms):
            message = f'accept the terms first: read GET /terms, then POST /terms/accept {{"sha256": "{terms}"}}'
            return Refusal(403, "terms_not_accepted", message)
        window, now = self._window(self._requests, key, "requests_per_minute"), self._clock()
        if wait_s := window.wait_for(now):
            message = f"the key may make {window.limit} requests a minute; try again in {wait_s} s"
            return Refusal(429, "rate_limit_exceeded", message, retry_after_s=wait_s)
        window.add(now)
        if visit.model and not (visit.model == self._spec.model and key.may_use(visit.model)):
            message = f"the model {visit.model} does not exist, or this key may not use it"
            return Refusal(404, "model_not_found", message, "model")
        return self._find_signals(key, visit) if visit.prompt_sha256 else None

    def _find_signals(self, key: Key, visit: Visit) -> Refusal | None:
        signals = self._signals.look(key.key_id, visit.origin.address, observe(visit.prompt, self._clock()))
        for signal in signals:
            self._record("signals", 1, {"signal": signal.value})
        if not signals:
            return None
        if self._is_first_in_a_minute(key.key_id, ",".join(signals)):
            self._log("signals", key, visit, signals=[each.value for each in signals])
        if self._config.signals.action is SignalAction.OBSERVE:
            return None
        return Refusal(403, "use_not_allowed", f"refused for {_words(signals)}; ask the operator if that is mistaken")

    def _out_of_quota(self, key: Key, tokens: int, quota: int) -> Refusal:
        usage = self._ledger.usage(key.key_id)
        left = quota - usage.used - usage.reserved
        message = f"the request can use {tokens} tokens, and of the key's {quota} only {left} are left"
        may_help = usage.used + tokens <= quota  # what is under way may turn out to need less
        return Refusal(429, "insufficient_quota", message, retry_after_s=RETRY_QUOTA_S if may_help else None)

    def _window(self, windows: dict[str, MinuteWindow], key: Key, limit: str) -> MinuteWindow:
        wanted: int = getattr(key, limit) or getattr(self._config.key_limits, limit)
        window = windows.setdefault(key.key_id, MinuteWindow(wanted))
        window.limit = wanted  # the file may have been changed
        return window

    def _refuse(self, key: Key | None, visit: Visit, refusal: Refusal) -> Refusal:
        """Count and log a refusal. What strangers send is only counted: it must not fill the disk."""
        self._record("requests", 1, {"outcome": refusal.code})
        if key is not None and self._is_first_in_a_minute(key.key_id, refusal.code):
            self._log("refused", key, visit, status=refusal.status, code=refusal.code)
        return refusal

    def _is_first_in_a_minute(self, key_id: str, what: str) -> bool:
        now, last = self._clock(), self._refused_at.get((key_id, what))
        if last is not None and now < last + MINUTE_S:
            return False
        self._refused_at[key_id, what] = now
        return True

    def _log(self, event: str, key: Key | None = None, visit: Visit | None = None, **facts: Any) -> None:
        of_key = {} if key is None else {"key_id": key.key_id, "key_name": key.name}
        of_visit = {}
        if visit is not None:
            of_visit = {**asdict(visit.origin), **asdict(visit)}
            del of_visit["origin"], of_visit["prompt"]
        self._audit.append({"at": to_text(self._now()), "event": event, **of_key, **of_visit, **facts})
        self._ledger.note_audited(self._audit.last)


def read_ledgered(directory: Path) -> Anchor | None:
    """Where the ledger of a gateway's directory says that the audit log ends; None when nothing was logged yet.

    Raises:
        UserError: the ledger is gone while the log is there, so every quota would begin anew; or it cannot be read.
    """
    ledger, log = directory / LEDGER_FILE, directory / LOG_FILE
    if not ledger.exists() and log.exists() and log.stat().st_size > 0:
        raise UserError(
            f"the ledger {ledger} is gone, and {log.name} beside it is not, so keys would have their quotas anew; "
            "put it back from a copy, or give the gateway another gateway.directory"
        )
    return read_audited(ledger)


def _unknown(secret: str | None, key: Key | None) -> Refusal:
    if not secret:
        return Refusal(401, "missing_api_key", "send an API key: Authorization: Bearer …")
    state = "not known" if key is None else "revoked" if key.revoked is not None else "expired"
    return Refusal(401, "invalid_api_key", f"the API key is {state}")


def _fits_a_minute(tokens: int, window: MinuteWindow, now: float) -> Refusal | None:
    if tokens > window.limit:
        message = f"the request can use {tokens} tokens, and the key has {window.limit} a minute; lower max_tokens or n"
        return Refusal(400, "above_cap", message, "max_tokens")
    if wait_s := window.wait_for(now, tokens):
        message = (
            f"the key has {window.limit} tokens a minute and the request can use {tokens}; try again in {wait_s} s"
        )
        return Refusal(429, "rate_limit_exceeded", message, retry_after_s=wait_s)
    return None


def _words(signals: tuple[Signal, ...]) -> str:
    return ", ".join(each.value.replace("_", " ") for each in signals)
