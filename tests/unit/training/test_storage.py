"""A directory is in place only with all of its bytes: what names it afterwards would outlive a power cut with it."""

import os
from pathlib import Path

import pytest

from tests.unit.training.syncs import watch_syncs
from training.storage import replaced_directory

pytestmark = pytest.mark.unit


def test_replaced_directory_syncs_all_bytes_and_names_before_it_is_in_place_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's calls are watched: what was synced, with how many bytes, when the directory got its name."""
    target = tmp_path / "hf"
    did: list[str] = []
    synced = watch_syncs(monkeypatch, lambda path: did.append(f"sync {path.relative_to(tmp_path)}"))
    rename = os.rename

    def watched_rename(source: Path, destination: Path) -> None:
        inside = {path: path.stat().st_size for path in (source, *source.rglob("*"))}
        assert len(inside) == 4
        assert {path: synced.get(path) for path in inside} == inside
        did.append("rename")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", watched_rename)
    with replaced_directory(str(target)) as local:
        (local / "weights.safetensors").write_bytes(bytes(1_000))
        (local / "texts").mkdir()
        (local / "texts" / "LICENSE").write_text("all of it")
    assert did[did.index("rename") :] == ["rename", "sync ."]
    assert (target / "texts" / "LICENSE").read_text() == "all of it"
