"""What each key has used in its life, which terms it has accepted, and where the audit log ends: SQLite, one writer.

A request reserves the most that it can use before it is let in, and settles with what it used. So ``used + reserved``
never exceeds the quota, whatever runs at once. What is never settled stays counted in full: a crash costs quota, and
never gives any away. An audit log that was deleted together with its anchor is missed here.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from services.gateway.audit import Anchor

SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    key_id TEXT PRIMARY KEY, used INTEGER NOT NULL DEFAULT 0, reserved INTEGER NOT NULL DEFAULT 0,
    requests INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS reservations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key_id TEXT NOT NULL, tokens INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS acceptances (
    key_id TEXT NOT NULL, terms_sha256 TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (key_id, terms_sha256)
) STRICT;
CREATE TABLE IF NOT EXISTS audit (
    only INTEGER PRIMARY KEY CHECK (only = 1), entries INTEGER NOT NULL, head TEXT NOT NULL
) STRICT;
"""
BUSY_S = 10.0  # a reader on the command line holds the file for milliseconds


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a key: used for good, and reserved by requests under way."""

    used: int = 0
    reserved: int = 0
    requests: int = 0


class Ledger:
    """Quotas of all keys of a gateway."""

    def __init__(self, path: Path) -> None:
        # An actor may be built on one thread and called on another, never on two at once.
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside, or none where anything inside fails.

        Holds the write lock from its start: what is read inside cannot change before it is written.
        """
        if self._db.in_transaction:  # a part of a larger one
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite may have given it up itself, as on a full disk
                self._db.execute("ROLLBACK")
            raise

    def note_audited(self, last: Anchor) -> None:
        """Record where the audit log ends now."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO audit VALUES (1, ?, ?)", (last.entries, last.head))

    def charge_leftovers(self) -> int:
        """Count as used what requests of an earlier process had reserved; returns their number."""
        with self.transaction():
            [(left,)] = self._db.execute("SELECT count(*) FROM reservations")
            self._db.execute("UPDATE usage SET used = used + reserved, reserved = 0")
            self._db.execute("DELETE FROM reservations")
        return int(left)

    def usage(self, key_id: str) -> Usage:
        """Of one key; zeros for one that has asked for nothing."""
        row = self._db.execute("SELECT used, reserved, requests FROM usage WHERE key_id = ?", (key_id,)).fetchone()
        return Usage(*row) if row else Usage()

    def reserve(self, key_id: str, tokens: int, quota: int | None) -> int | None:
        """Set ``tokens`` aside; returns the reservation's id, or None where the quota has not that much left."""
        with self.transaction():
            self._db.execute("INSERT OR IGNORE INTO usage (key_id) VALUES (?)", (key_id,))
            taken = self._db.execute(
                "UPDATE usage SET reserved = reserved + ?1, requests = requests + 1 "
                "WHERE key_id = ?2 AND (?3 IS NULL OR used + reserved + ?1 <= ?3)",
                (tokens, key_id, quota),
            )
            if taken.rowcount == 0:
                return None
            added = self._db.execute("INSERT INTO reservations (key_id, tokens) VALUES (?, ?)", (key_id, tokens))
            return added.lastrowid

    def settle(self, reservation: int, used: int) -> bool:
        """Free the reservation and count ``used``, at most what it had. False when it is not open (any more)."""
        with self.transaction():
            row = self._db.execute("SELECT key_id, tokens FROM reservations WHERE id = ?", (reservation,)).fetchone()
            if row is None:
                return False
            key_id, tokens = row
            self._db.execute("DELETE FROM reservations WHERE id = ?", (reservation,))
            self._db.execute(
                "UPDATE usage SET reserved = reserved - ?, used = used + ? WHERE key_id = ?",
                (tokens, min(used, tokens), key_id),
            )
        return True

    def accept(self, key_id: str, terms_sha256: str, at: str) -> bool:
        """Record that the key's holder accepts this text; False when that was recorded before."""
        with self.transaction():
            added = self._db.execute("INSERT OR IGNORE INTO acceptances VALUES (?, ?, ?)", (key_id, terms_sha256, at))
        return added.rowcount > 0

    def has_accepted(self, key_id: str, terms_sha256: str) -> bool:
        """Whether the key's holder has accepted this very text."""
        query = "SELECT 1 FROM acceptances WHERE key_id = ? AND terms_sha256 = ?"
        return self._db.execute(query, (key_id, terms_sha256)).fetchone() is not None


def read_audited(path: Path) -> Anchor | None:
    """Where a ledger says that the audit log ends; None without a ledger, or when nothing was logged. Changes nothing.

    Raises:
        UserError: the file cannot be read as a ledger.
    """
    if not path.exists():
        return None
    # Where SQLite has left no log of its own, nobody is writing, and a copy can be read where nothing may be written.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_S)) as db:
            # A ledger of an earlier version has no such table until a gateway has started over it.
            has_table = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit'").fetchone()
            row = db.execute("SELECT entries, head FROM audit").fetchone() if has_table else None
    except sqlite3.Error as error:
        raise UserError(
            f"the ledger {path} cannot be read ({error}); put it back from a copy, or give the gateway another "
            "gateway.directory"
        ) from None
    return Anchor(*row) if row else None
