"""Reads a table that still grows: its files in the order in which the transaction log commits them.

Every version of a Delta log is one immutable JSON document, so the order is the same whoever reads it, and whenever.
"""

import json
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError
from configs.table import COMMITTED_DIGESTS
from training import storage
from training.job import Commits, DataFile


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file and the number of its shard; a sealed table has its files in the order of those."""

    shard: int
    file: DataFile


class CommitLog:
    """The commits of a table, each read once."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._version = 0

    def read_new(self) -> list[CommittedFile]:
        """Return the files committed since the last call, in order; none when nothing was.

        UserError when the table is another one, or a file has no digest or was removed.
        """
        files: list[CommittedFile] = []
        while (actions := self._read_version(self._version)) is not None:
            files += self._files_of(actions)
            self._version += 1
        return files

    def _read_version(self, version: int) -> list[dict[str, Any]] | None:
        fs, path = storage.open_filesystem(storage.join(self._commits.table, "_delta_log", f"{version:020d}.json"))
        try:
            return [json.loads(line) for line in fs.cat_file(path).splitlines()]
        except FileNotFoundError:
            return None

    def _files_of(self, actions: list[dict[str, Any]]) -> list[CommittedFile]:
        table, found = self._commits.table, [action for action in actions if "metaData" in action]
        if any(action["metaData"]["id"] != self._commits.table_id for action in found):
            raise UserError(f"{table} is another table than the job's ({self._commits.table_id}); take another run_dir")
        if any("remove" in action for action in actions):
            raise UserError(f"{table}: a file was removed while a student learns from it; train on sealed files")
        info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        digests = json.loads(info.get(COMMITTED_DIGESTS, "{}"))
        return [self._to_file(action["add"], digests) for action in actions if "add" in action]

    def _to_file(self, add: dict[str, Any], digests: dict[str, str]) -> CommittedFile:
        statistics = json.loads(add["stats"])
        if add["path"] not in digests:
            raise UserError(
                f"{self._commits.table}: {add['path']} was committed without a digest, so it cannot be learnt from "
                "before the table is sealed; train on the sealed files"
            )
        uri = storage.join(self._commits.table, add["path"])
        file = DataFile(uri, statistics["numRecords"], digests[add["path"]])
        return CommittedFile(statistics["minValues"]["shard"], file)
