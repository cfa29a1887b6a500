"""The audit log: JSON lines, each with the hash of the line before: no entry can be changed or taken out unseen.

The length and the hash of the last line are anchored in a second file, and the ledger of quotas knows them too, so that
entries missing at the end, and a log that is gone, are found as well. Whoever can write all three can forge all three:
keep the anchor where the log's writer can only add, or copy it away.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError

LOG_FILE = "audit.jsonl"
FIRST = "0" * 64  # what the first entry has for the hash of the one before


@dataclass(frozen=True, slots=True)
class Anchor:
    """How many entries there are, and the SHA-256 of the last line (without its newline)."""

    entries: int = 0
    head: str = FIRST


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: entries that hold, their head, and the first fault in words, or None.

    ``is_torn`` says that the only fault is a last line without its end, which `AuditLog` removes.
    """

    entries: int
    head: str
    fault: str | None = None
    is_torn: bool = False


class AuditLog:
    """Appends to one log; there is one writer at a time."""

    def __init__(self, path: Path, anchor: Path, ledgered: Anchor | None = None) -> None:
        """Raises `UserError` when what is there does not hold: a log is never continued over a fault."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        anchor.parent.mkdir(parents=True, exist_ok=True)
        verdict = check_log(path, anchor, ledgered)
        if verdict.is_torn:
            _cut_torn_line(path)
        self._anchor_path = anchor
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._last = Anchor(verdict.entries, verdict.head)
        if verdict.is_torn:
            self.append({"event": "torn_line_removed"})

    @property
    def last(self) -> Anchor:
        """Of the newest entry."""
        return self._last

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry, durably, before it returns. ``entry`` and ``previous`` are the log's own.

        Raises:
            OSError: the disk took no whole line, and none is there; or it took no anchor, and the line is there.
        """
        numbered = {"entry": self._last.entries, **entry, "previous": self._last.head}
        # A lone surrogate, as in a name from a command line, is written as JSON's own escape: nothing is unloggable.
        line = json.dumps(numbered, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")
        _write_line(self._file, line + b"\n")
        self._last = Anchor(self._last.entries + 1, _hash(line))
        _write_anchor(self._anchor_path, self._last)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def verify(path: Path, anchor: Path, ledgered: Anchor | None = None) -> Verdict:
    """Read a log from its first entry to its last, and compare it with its anchor and what the ledger knows of it.

    Names the first fault.
    """
    try:
        anchored = _read_anchor(anchor)
    except (ValueError, TypeError) as error:
        return Verdict(0, FIRST, f"the anchor {anchor} cannot be read ({error})")
    heads = {known.entries: FIRST for known in (anchored, ledgered) if known is not None}
    count, head, is_torn = 0, FIRST, False
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # the last one: whatever is in it was never answered for
                    is_torn = True
                    break
                if (fault := _find_fault(line, count, head)) is not None:
                    return Verdict(count, head, fault)
                count, head = count + 1, _hash(line.rstrip(b"\n"))
                if count in heads:
                    heads[count] = head
    if anchored is None and (count or ledgered is not None):
        fault = _without_anchor(count, ledgered, anchor)
    else:
        fault = _compare(count, heads, "anchor", anchored) or _compare(count, heads, "ledger", ledgered)
    if fault is None and is_torn:
        return Verdict(count, head, f"entry {count} is cut off; the gateway removes it when it starts", is_torn=True)
    return Verdict(count, head, fault)


def check_log(path: Path, anchor: Path, ledgered: Anchor | None) -> Verdict:
    """Raises `UserError` when a log cannot be continued. It can over a last line that a crash has cut off."""
    verdict = verify(path, anchor, ledgered)
    if verdict.fault is not None and not verdict.is_torn:
        raise UserError(
            f"the audit log {path} does not hold: {verdict.fault}; put back what was there, or keep what is left as "
            "evidence and give the gateway another gateway.directory"
        )
    return verdict


def default_anchor(directory: Path) -> Path:
    """Where the anchor of a gateway's directory lies when the recipe says nothing else."""
    return directory.with_name(f"{directory.name}-anchor.json")


def _find_fault(line: bytes, count: int, head: str) -> str | None:
    try:
        entry = json.loads(line)
        number, previous = entry["entry"], entry["previous"]
    except (ValueError, TypeError, KeyError):
        return f"entry {count} was changed: it is no entry any more"
    if not isinstance(number, int) or number < count:
        return f"entry {count} was changed: its number is {number}"
    if number > count:
        return f"entry {count} is missing: entry {number} follows entry {count - 1}" if count else "entry 0 is missing"
    if previous != head:
        changed = count - 1 if count else 0
        return f"entry {changed} was changed: its hash is not the one that entry {count} has"
    return None


def _without_anchor(count: int, ledgered: Anchor | None, path: Path) -> str:
    if count == 0 and ledgered is not None:
        return f"its entries and its anchor {path} are gone, and the ledger knows {ledgered.entries} entries"
    return f"there is no anchor {path}, without which entries missing at the end cannot be found"


def _compare(count: int, heads: Mapping[int, str], witness: str, known: Anchor | None) -> str | None:
    if known is None:
        return None
    if count < known.entries:
        return f"entry {count} is missing: the {witness} knows {known.entries} entries"
    if heads[known.entries] != known.head:
        last = known.entries - 1
        return f"entry {last} was changed: the {witness} has another hash of it, and the chain up to it may be forged"
    return None


def _write_line(file: int, line: bytes) -> None:
    """All of it, durably, or nothing: the next line must not be glued to half a one."""
    size = os.fstat(file).st_size
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(file, rest) :]  # a disk that is nearly full takes a part
        os.fsync(file)  # the anchor must never be ahead of what survives a power cut
    except OSError:
        os.ftruncate(file, size)
        raise


def _cut_torn_line(path: Path) -> None:
    """Remove the rest of a line whose writer died while writing: it was never anchored nor answered for."""
    with open(path, "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _read_anchor(path: Path) -> Anchor | None:
    if not path.exists():
        return None
    anchor = Anchor(**json.loads(path.read_text()))
    if not isinstance(anchor.entries, int) or not isinstance(anchor.head, str):
        raise ValueError("entries must be a number and head a hash")
    return anchor


def _write_anchor(path: Path, anchor: Anchor) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with open(temporary, "w") as file:
        file.write(json.dumps(asdict(anchor)) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
