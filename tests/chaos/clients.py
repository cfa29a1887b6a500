"""The client of GENERATE with a tokenizer that costs nothing to load, and with points at which it can be told to die.

A fault is a file in the directory that ``STILLHOUSE_CHAOS_FAULTS`` names, called after its point. The first process to
reach the point takes the file away and ends there, as by SIGKILL.
"""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake.transaction import AddAction

import services.client
from services.client import ClientSpec, ShardClient
from services.table import commit, write_file
from services.template import PromptRenderer

FAULTS_VARIABLE = "STILLHOUSE_CHAOS_FAULTS"
FAULT_POINTS = ("before_upload", "during_upload", "after_upload", "after_commit", "before_reply")
POISON = "!"  # prompts with this character end the echo's replica
REFUSED = "?"  # the echo refuses prompts with this one


class CharacterTokenizer:
    """As much of a tokenizer as a client uses: one token per character, no chat template."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in token_ids)


def load_renderer(*_: Any) -> PromptRenderer:
    """In place of `PromptRenderer.load`."""
    return PromptRenderer(CharacterTokenizer(), {})


def reach(point: str) -> None:
    """End this process here, if a fault is waiting at the point."""
    directory = os.environ.get(FAULTS_VARIABLE)
    if directory is None:
        return
    try:
        os.unlink(Path(directory) / point)
    except FileNotFoundError:
        return
    os._exit(1)


class ChaosClient(ShardClient):
    """A `ShardClient` whose process dies around its upload and its commit when told to."""

    def __init__(self, spec: ClientSpec) -> None:
        vars(services.client).update(
            PromptRenderer=StandInRenderer, write_file=_write_file_and_reach, commit=_commit_and_reach
        )
        super().__init__(spec)

    def __call__(self, block: pa.Table) -> pa.Table:
        summaries = super().__call__(block)
        reach("before_reply")
        return summaries


class StandInRenderer:
    """In place of `PromptRenderer`, whose loading imports transformers."""

    load = staticmethod(load_renderer)


def _write_file_and_reach(uri: str, *arguments: Any) -> AddAction:
    reach("before_upload")
    if (Path(os.environ.get(FAULTS_VARIABLE, os.devnull)) / "during_upload").exists():
        (Path(uri) / f"partial-{os.getpid()}.parquet").write_bytes(b"PAR1 and no more")
    reach("during_upload")
    action = write_file(uri, *arguments)
    reach("after_upload")
    return action


def _commit_and_reach(*arguments: Any, **options: Any) -> bool:
    done = commit(*arguments, **options)
    reach("after_commit")
    return done
