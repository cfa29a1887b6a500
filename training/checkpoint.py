"""Checkpoints of a training run: written by all ranks with DCP, valid once their manifest stands, checked on resume.

A checkpoint is ``<output_dir>/checkpoints/step-XXXXXXXX`` and counts when it has ``complete.json``, which is written
last, once all of it would outlive a power cut, and holds the progress and each file's digest. Any number of workers can
resume from it.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from training import storage
from training.corpus import sha256_of
from training.parallel import World
from training.side_group import SideGroup
from training.staging import Staging

logger = logging.getLogger(__name__)

T = TypeVar("T")

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


class CheckpointError(Exception):
    """A checkpoint could not be written or read back; says on which rank and why. Raised on every rank."""


class CheckpointStore:
    """The checkpoints of one output directory; every rank calls each method at the same place.

    With ``is_async`` a save copies the state into the host's memory and returns; a thread writes and commits it while
    the next steps are taken. One checkpoint is in flight at most: the next save waits for it, as does the end of the
    ``with`` block. What went wrong in a thread is raised by the next save or wait, on every rank alike.
    """

    def __init__(self, output_dir: str, keep: int, world: World, is_async: bool = True) -> None:
        self._output_dir = output_dir
        self._keep = keep
        self._world = world
        # The thread's collectives must not meet those of the steps, and have CPU tensors where those are on a GPU.
        self._group = SideGroup(world)
        self._staging = Staging(world.device) if is_async else None
        # DCP warns that it assumes one process even where it was told so.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)
        self._group.close()
        if error is None:
            self.wait()
        elif self._in_flight is not None and self._in_flight.exception() is not None:
            # The error on its way up is the one to raise, and this one may follow from it.
            logger.error("a checkpoint could not be written: %s", self._in_flight.exception())

    def save(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, *, is_urgent: bool = False
    ) -> None:
        """Write a checkpoint, commit it, remove all but the newest ``keep``; ``is_urgent`` waits until that is done.

        Raises what went wrong with this write, where it is waited for, or with the one before.
        """
        self.wait()
        state = _state_of(model, optimizer)
        if self._staging is None or is_urgent:
            self._write(state, progress)
            return
        self._in_flight = self._executor.submit(self._write, self._staging.copy(state), progress)

    def wait(self) -> None:
        """Return when no checkpoint is in flight; raise what went wrong with it."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def load_newest(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Load the newest checkpoint that is complete and undamaged into both; None when there is none."""
        for name, manifest in self._on_first_rank(lambda: list(self._complete())):
            uri = self._uri(name)
            expected = manifest["files"]
            if self._digest_files(uri, sorted(expected)) != expected:
                logger.warning("checkpoint %s is damaged, falling back to the one before", uri)
                # Else it would be one of those that are kept, and a good one removed for it.
                self._on_first_rank(partial(storage.remove_tree, storage.join(uri, _MANIFEST)))
                continue
            state = _state_of(model, optimizer)
            with _ordinary_errors():
                load(state, storage_reader=FsspecReader(uri), process_group=self._group.group, no_dist=self._is_alone)
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

    @property
    def _is_alone(self) -> bool:
        return self._world.size == 1

    def _write(self, state: dict[str, Any], progress: Progress) -> None:
        """Write and commit ``state``; on the thread or, without one in flight, on the caller's."""
        uri = self._uri(f"step-{progress.step:08d}")
        self._on_first_rank(lambda: storage.remove_tree(uri))
        # DCP syncs a local file before its last bytes leave Python's buffer, and for an object store the whole machine.
        writer = FsspecWriter(uri, sync_files=False)
        with _ordinary_errors():
            save(state, storage_writer=writer, process_group=self._group.group, no_dist=self._is_alone)
        names = self._on_first_rank(lambda: storage.list_names(uri))
        self._on_all_ranks(lambda: storage.sync(*(storage.join(uri, name) for name in self._share(names))))
        digests = self._digest_files(uri, names)

        def commit() -> None:
            manifest = {"progress": asdict(progress), "files": digests}
            storage.sync(uri)
            storage.write_text(storage.join(uri, _MANIFEST), json.dumps(manifest))
            storage.sync(self._uri())  # before those that it replaces are gone
            self._prune()

        self._on_first_rank(commit)

    def _uri(self, *names: str) -> str:
        return storage.join(self._output_dir, "checkpoints", *names)

    def _share(self, names: list[str]) -> list[str]:
        """Return this rank's part of the files."""
        return names[self._world.rank :: self._world.size]

    def _digest_files(self, uri: str, names: list[str]) -> dict[str, str]:
        """Return each file's digest, read back by all ranks together; a missing file has an empty one."""
        mine = [(name, storage.join(uri, name)) for name in self._share(names)]
        parts = self._on_all_ranks(
            lambda: [(name, sha256_of(file) if storage.exists(file) else "") for name, file in mine]
        )
        return dict(sorted(pair for part in parts for pair in part))

    def _on_first_rank(self, work: Callable[[], T]) -> T:
        """Do ``work`` on rank 0 and return its result on every rank."""
        result: Any = self._on_all_ranks(lambda: work() if self._world.rank == 0 else None)[0]
        return result

    def _on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """Return each rank's result; an error of one is raised on all, or the others would wait for it for ever."""
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # whatever a file system raises
            error = f"rank {self._world.rank}: {type(caught).__name__}: {caught}"
        outcomes: list[tuple[Any, str | None]] = self._group.gather((result, error))
        if errors := [error for _, error in outcomes if error is not None]:
            raise CheckpointError("; ".join(errors))
        return [result for result, _ in outcomes]

    def _complete(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in reversed(storage.list_names(self._uri())):
            if (manifest := self._read_manifest(name)) is not None:
                yield name, manifest

    def _read_manifest(self, name: str) -> dict[str, Any] | None:
        """None where there is none, or what is there is not one: after a power cut it may be empty."""
        try:
            manifest = storage.read_json(self._uri(name, _MANIFEST))
            if manifest is None:
                return None
            return {"files": dict(manifest["files"]), "progress": asdict(Progress(**manifest["progress"]))}
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("checkpoint %s does not count, as its %s cannot be read: %s", name, _MANIFEST, error)
            return None

    def _prune(self) -> None:
        kept = [name for name, _ in self._complete()][: self._keep]
        for name in storage.list_names(self._uri()):
            if name not in kept:
                storage.remove_tree(self._uri(name))


@contextmanager
def _ordinary_errors() -> Iterator[None]:
    """Raise DCP's errors as CheckpointError; they are no subclass of Exception and pass by whoever handles those."""
    try:
        yield
    except CheckpointException as error:
        raise CheckpointError("; ".join(f"rank {rank}: {why}" for rank, (why, _) in error.failures.items())) from error


def _state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    return {"model": model_state, "optimizer": optimizer_state}
