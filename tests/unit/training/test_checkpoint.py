"""A checkpoint counts only when it would outlive a power cut; what an object store takes needs no help."""

import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from tests.unit.training.syncs import watch_syncs
from training.checkpoint import CheckpointStore, Progress
from training.parallel import World

pytestmark = pytest.mark.unit

WORLD = World(0, 1, torch.device("cpu"))


def save(output_dir: str, steps: list[int]) -> None:
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(64)).sum().backward()
    optimizer.step()
    with CheckpointStore(output_dir, keep=1, world=WORLD) as store:
        for step in steps:
            store.save(model, optimizer, Progress(step=step))


def test_save_syncs_all_bytes_and_names_before_the_manifest_and_that_before_older_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's calls are watched: what was synced, with how many bytes, and what stood where at that time."""
    checkpoints = tmp_path / "checkpoints"
    first, second = (checkpoints / f"step-{step:08d}" for step in (1, 2))
    did: list[str] = []
    replace = os.replace

    def note_sync(path: Path) -> None:
        did.append(f"sync {path.relative_to(checkpoints)} {first.exists() and second.exists()}")

    def watched_replace(source: str, target: str) -> None:
        assert synced[Path(source)] > 0
        shards = [path for path in Path(target).parent.iterdir() if path != Path(source)]
        assert len(shards) > 1
        assert {path: synced.get(path) for path in shards} == {path: path.stat().st_size for path in shards}
        did.append(f"commit {Path(target).relative_to(checkpoints)}")
        replace(source, target)

    synced = watch_syncs(monkeypatch, note_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save(str(tmp_path), [1, 2])
    committed = did.index("commit step-00000002/complete.json")
    assert did[committed - 2] == "sync step-00000002 True"
    assert did[committed + 1 :] == ["sync step-00000002 True", "sync . True"]
    assert not first.exists()


def test_save_to_an_object_store_does_not_sync_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("synced")

    calls: list[Callable[..., None]] = [os.sync, os.fsync]
    for call in calls:
        monkeypatch.setattr(os, call.__name__, refuse)
    fs = fsspec.filesystem("memory")
    try:
        save("memory://unsynced/out", [1])
        assert fs.exists("/unsynced/out/checkpoints/step-00000001/complete.json")
    finally:
        fs.rm("/unsynced", recursive=True)
