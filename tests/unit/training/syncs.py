"""Which files and directories would outlive a power cut."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def watch_syncs(monkeypatch: pytest.MonkeyPatch, note: Callable[[Path], None]) -> dict[Path, int]:
    """Every path that is synced from now on, with the bytes it had then; ``note`` is told each time, before it is."""
    synced: dict[Path, int] = {}
    fsync = os.fsync

    def watched_fsync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced[path] = path.stat().st_size
        note(path)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    return synced
