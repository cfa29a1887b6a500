"""The client and the writer of GENERATE with points at which their process can be told to die, as by SIGKILL.

A fault is a file in a directory, called after its point; the first process that reaches the point takes it away. The
client's tokenizer costs nothing to load.
"""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

import services.client
from services.client import ClientSpec, ShardClient
from services.table import TableWriter, write_file
from services.template import PromptRenderer
from tests.chaos.driver import FAULTS

CLIENT_POINTS = ("before_upload", "during_upload", "after_upload", "before_reply")
DRIVER_POINTS = ("before_commit", "after_commit")
FAULT_POINTS = (*CLIENT_POINTS, *DRIVER_POINTS)
CLIENT_FILE = "client"  # in the directory of the faults, with the process id as suffix: whom to kill
POISON = "!"  # prompts with this character end the echo's replica
REFUSED = "?"  # the echo refuses prompts with this one

write_table = pq.write_table


class CharacterTokenizer:
    """As much of a tokenizer as a client uses: one token per character, no chat template."""

    chat_template = None

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) for character in text] for text in texts]}

    def batch_decode(self, completions: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return ["".join(chr(token) for token in token_ids) for token_ids in completions]


def load_renderer(*_: Any) -> PromptRenderer:
    """In place of `PromptRenderer.load`."""
    return PromptRenderer(CharacterTokenizer(), {})


class StandInRenderer:
    """In place of `PromptRenderer`, whose loading imports transformers."""

    load = staticmethod(load_renderer)


def take(faults: str, point: str) -> bool:
    """Whether a fault waits at the point; it is this process's then."""
    try:
        os.unlink(Path(faults) / point)
    except FileNotFoundError:
        return False
    return True


def reach(faults: str, point: str) -> None:
    """End this process here, if a fault waits at the point."""
    if take(faults, point):
        os.kill(os.getpid(), signal.SIGKILL)


class ChaosClient(ShardClient):
    """A `ShardClient` whose process dies around its upload when told to."""

    def __init__(self, spec: ClientSpec) -> None:
        self._faults = spec.tables["completions"].footer[FAULTS]
        if self._faults:
            Path(self._faults, f"{CLIENT_FILE}.{os.getpid()}").touch()
        pq.write_table = partial(_write_table, self._faults)
        vars(services.client).update(PromptRenderer=StandInRenderer, write_file=partial(_write_file, self._faults))
        super().__init__(spec)

    def __call__(self, block: pa.Table) -> pa.Table:
        summaries = super().__call__(block)
        reach(self._faults, "before_reply")
        return summaries


class ChaosWriter(TableWriter):
    """A `TableWriter` whose process dies around a commit when told to."""

    faults: ClassVar[str]  # of the one job of this process

    def _transact(self, files: list[AddAction]) -> None:
        if files:
            reach(self.faults, "before_commit")
        super()._transact(files)
        if files:
            reach(self.faults, "after_commit")


def _write_table(faults: str, rows: pa.Table, file: Any, **options: Any) -> None:
    reach(faults, "before_upload")
    if take(faults, "during_upload"):
        file.write(b"PAR1 and no more")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write_table(rows, file, **options)


def _write_file(faults: str, *arguments: Any) -> AddAction:
    action = write_file(*arguments)
    reach(faults, "after_upload")
    return action
