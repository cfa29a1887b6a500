"""Checkpoints of a training run: written by all ranks with DCP, valid once their manifest stands, checked on resume.

A checkpoint is ``<output_dir>/checkpoints/step-XXXXXXXX`` and counts when it has ``complete.json``, which is written
last and holds the progress and each file's digest. Any number of workers can resume from it.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from training import storage
from training.corpus import sha256_of
from training.parallel import World

logger = logging.getLogger(__name__)

_MANIFEST = "complete.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; with weights and optimiser all that a resume needs."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epoch of the next step."""
    step_in_epoch: int = 0
    """Steps of that epoch done."""
    loss_tokens: int = 0
    """Loss tokens seen."""
    loss: float = float("nan")
    """Loss of the last step (nats)."""
    evaluation_loss: float | None = None
    """Newest evaluation loss (nats)."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one output directory; every rank calls each method at the same place."""

    output_dir: str
    keep: int
    world: World

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write a checkpoint, commit it, and remove all but the newest ``keep``."""
        uri = self._uri(f"step-{progress.step:08d}")
        if self.world.rank == 0:
            storage.remove_tree(uri)
        self.world.barrier()
        state = _state_of(model, optimizer)
        with _without_single_process_warning():
            save(state, storage_writer=FsspecWriter(uri), no_dist=not dist.is_initialized())
        names = self.world.broadcast(storage.list_names(uri) if self.world.rank == 0 else None)
        digests = {name: digest for part in self.world.gather(self._digests(uri, names)) for name, digest in part}
        if self.world.rank == 0:
            manifest = {"progress": asdict(progress), "files": digests}
            storage.write_text(storage.join(uri, _MANIFEST), json.dumps(manifest))
            self._prune()
        self.world.barrier()

    def load_newest(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Load the newest checkpoint that is complete and undamaged into both; None when there is none."""
        for name, manifest in self.world.broadcast(list(self._complete()) if self.world.rank == 0 else None):
            uri = self._uri(name)
            expected = manifest["files"]
            found = [pair for part in self.world.gather(self._digests(uri, sorted(expected))) for pair in part]
            if dict(found) != expected:
                logger.warning("checkpoint %s is damaged, falling back to the one before", uri)
                continue
            state = _state_of(model, optimizer)
            with _without_single_process_warning():
                load(state, storage_reader=FsspecReader(uri), no_dist=not dist.is_initialized())
            # Frozen weights are those that the student was built with.
            options = StateDictOptions(strict=all(parameter.requires_grad for parameter in model.parameters()))
            set_state_dict(
                model,
                optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=options,
            )
            return Progress(**manifest["progress"])
        return None

    def _uri(self, *names: str) -> str:
        return storage.join(self.output_dir, "checkpoints", *names)

    def _digests(self, uri: str, names: list[str]) -> list[tuple[str, str]]:
        """Return this rank's part of the files with their digests; a missing file has an empty one."""
        mine = names[self.world.rank :: self.world.size]
        uris = [(name, storage.join(uri, name)) for name in mine]
        return [(name, sha256_of(file) if storage.exists(file) else "") for name, file in uris]

    def _complete(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in reversed(storage.list_names(self._uri())):
            manifest = storage.read_json(self._uri(name, _MANIFEST))
            if manifest is not None:
                yield name, manifest

    def _prune(self) -> None:
        kept = [name for name, _ in self._complete()][: self.keep]
        for name in storage.list_names(self._uri()):
            if name not in kept:
                storage.remove_tree(self._uri(name))


@contextmanager
def _without_single_process_warning() -> Iterator[None]:
    # DCP warns that it assumes one process even where it was told so.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(
        model, optimizer, options=StateDictOptions(ignore_frozen_params=True)
    )
    return {"model": model_state, "optimizer": optimizer_state}
