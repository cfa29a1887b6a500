"""API keys: made once, kept as hashes in one file that people read and commands write.

A key is 256 random bits, so a plain SHA-256 is enough: a slow hash protects guessable passwords, and would let anyone
burn our processor with wrong keys.
"""

import fcntl
import hashlib
import json
import os
import secrets
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.errors import UserError

PREFIX = "sk-stillhouse-"
RANDOM_BYTES = 32
LOCK_S, LOCK_POLL_S = 10.0, 0.05  # a command that changes keys holds the lock for milliseconds
ID_CHARACTERS = 12  # of the hash: enough to tell keys apart, useless for finding one


@dataclass(frozen=True, slots=True)
class Key:
    """One key as the file has it; times are ISO 8601, None takes the recipe's limit, no ``models`` are all."""

    name: str
    sha256: str
    created: str
    expires: str | None = None
    revoked: str | None = None
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    lifetime_tokens: int | None = None

    @property
    def key_id(self) -> str:
        """What logs and the ledger call it."""
        return self.sha256[:ID_CHARACTERS]

    def is_expired(self, now: datetime) -> bool:
        """From its last moment on."""
        return self.expires is not None and datetime.fromisoformat(self.expires) <= now

    def may_use(self, model: str) -> bool:
        """Whether its list of models has this one."""
        return not self.models or model in self.models


class KeyFile:
    """The keys of a gateway. A change of the file counts from the next request on: revoking needs no restart.

    Changes come one after another, whoever makes them; one that waits longer than ``lock_s`` is refused.
    """

    def __init__(self, path: Path, lock_s: float = LOCK_S) -> None:
        self._path = path
        self._lock_s = lock_s
        self._version: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    def find(self, secret: str) -> Key | None:
        """The key that a client shows, whatever its state. Looked up by its hash, so timing tells nothing of others."""
        self._refresh()
        return self._keys.get(hash_key(secret))

    def all(self) -> list[Key]:
        """In the order in which they were made."""
        self._refresh()
        return list(self._keys.values())

    def add(self, key: Key) -> None:
        """Raises `UserError` when a key that counts has this name."""
        with self._changing() as keys:
            if any(each.name == key.name and each.revoked is None for each in keys):
                raise UserError(f"there is a key {key.name} already; revoke it first, or choose another name")
            keys.append(key)

    def revoke(self, name: str, now: datetime) -> Key:
        """Revoke the key of this name that counts. Raises `UserError` when there is none."""
        with self._changing() as keys:
            for place, key in enumerate(keys):
                if key.name == name and key.revoked is None:
                    keys[place] = replace(key, revoked=to_text(now))
                    return keys[place]
            known = ", ".join(each.name for each in keys if each.revoked is None) or "none"
            raise UserError(f"there is no key {name} to revoke; those that count are: {known}")

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The keys as they lie there, for one change at a time; what the list has become is written at the end."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Beside the keys, as their file is replaced by each change and a lock stays with what was replaced.
        lock = self._path.with_name(f".{self._path.name}.lock")
        with open(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            _wait_for_lock(file.fileno(), self._path, self._lock_s)
            keys = _parse(self._path) if self._path.exists() else []
            yield keys
            self._write(keys)

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._keys, self._version = {}, None
            return
        version = (found.st_mtime_ns, found.st_size, found.st_ino)  # a file that is replaced has another inode
        if version != self._version:
            self._keys = {key.sha256: key for key in _parse(self._path)}
            self._version = version

    def _write(self, keys: Sequence[Key]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)


def make_key(name: str, now: datetime, **limits: Any) -> tuple[str, Key]:
    """A random key, which nothing keeps, and what is kept of it."""
    secret = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return secret, Key(name=name, sha256=hash_key(secret), created=to_text(now), **limits)


def hash_key(secret: str) -> str:
    """SHA-256 of what a client shows."""
    return hashlib.sha256(secret.encode()).hexdigest()


def to_text(moment: datetime) -> str:
    """A moment in the file's form, such as ``2026-11-24T17:00:00+00:00``."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _wait_for_lock(lock: int, path: Path, lock_s: float) -> None:
    give_up_at = time.monotonic() + lock_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the file, so with its process too
            return
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise UserError(
                    f"another command has been changing {path} for {lock_s:g} s; let it end, and give this one again"
                ) from None
        time.sleep(LOCK_POLL_S)


def _parse(path: Path) -> list[Key]:
    try:
        keys = [Key(**{**each, "models": tuple(each["models"])}) for each in json.loads(path.read_text())["keys"]]
        for key in keys:
            key.is_expired(datetime.now(UTC))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a file of keys ({error}); restore it, or make keys anew") from None
    return keys
