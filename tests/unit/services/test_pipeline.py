"""What the driver takes and commits, and when it gives up: a real table, scripted clients in place of Ray Data's."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import services.pipeline
from configs.errors import DeadlineExceeded, UserError
from configs.schema import AcceptanceConfig, SamplingConfig
from configs.table import COMPLETIONS_SCHEMA
from services.acceptance import rows_to_table
from services.client import ClientSpec, TableJob
from services.dataset import read_ledger
from services.pipeline import SILENCES, Feed, stream_shards
from services.table import open_or_create, write_file
from tests.unit.services.clients import make_spec
from tests.unit.services.shards import DEADLINE_S, make_rows

pytestmark = pytest.mark.unit

WAIT_S = 20.0
SOON_S = 0.5  # until a wait that is in vain ends

Clients = Callable[[ClientSpec, list[dict[str, Any]]], Iterator[dict[str, Any]]]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    open_or_create(str(tmp_path / "completions"), COMPLETIONS_SCHEMA, "completions")
    return str(tmp_path / "completions")


def feed(uri: str, teacher: str, shards: list[int], deadline_s: float = DEADLINE_S) -> Feed:
    table = TableJob("", uri, SamplingConfig(), AcceptanceConfig(), {})
    spec = make_spec({"completions": table}, teacher=teacher, shard_deadline_s=deadline_s)
    return Feed(spec, [{"table": "completions", "shard": shard, "path": ""} for shard in shards])


def store(uri: str, shard: int) -> dict[str, Any]:
    """The summary of a shard of two rows whose file is stored, as a client reports it."""
    rows = rows_to_table(make_rows([f"{shard}a", f"{shard}b"], 1, shard))
    file = json.dumps(asdict(write_file(uri, rows, shard, {}, DEADLINE_S)))
    return {"table": "completions", "shard": shard, "accepted": 2, "file": file}


def run_clients(monkeypatch: pytest.MonkeyPatch, clients: Clients) -> None:
    monkeypatch.setattr(services.pipeline, "STREAM_END_S", 0.1)  # a client that waits in vain is not waited for
    monkeypatch.setattr(services.pipeline, "_run_clients", clients)


def committed(uri: str) -> int:
    return read_ledger(uri, 6).accepted


def make_at_once(uri: str, ready: dict[str, Event]) -> Clients:
    """Clients of a teacher make its shards as soon as it is ready."""

    def clients(spec: ClientSpec, tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        assert ready[spec.teacher].wait(WAIT_S)
        for task in tasks:
            yield store(uri, task["shard"])

    return clients


def test_shards_of_a_teacher_are_committed_while_another_still_loads(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = {"quick": Event(), "slow": Event()}
    run_clients(monkeypatch, make_at_once(uri, ready))
    give_up_at = time.monotonic() + WAIT_S
    seen = []

    def is_loading() -> bool:
        ready["quick"].set()
        if committed(uri) == 4 or time.monotonic() > give_up_at:  # all that the quick one has to make
            seen.append(committed(uri))
            ready["slow"].set()
        return not ready["slow"].is_set()

    feeds = [feed(uri, "quick", [0, 1]), feed(uri, "slow", [2])]
    summaries = list(stream_shards(feeds, is_loading=is_loading))
    assert seen[0] == 4
    assert sorted(each["shard"] for each in summaries) == [0, 1, 2]
    assert committed(uri) == 6


def test_shards_that_are_done_are_kept_when_another_teacher_cannot_start(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = {"quick": Event(), "slow": Event()}
    ready["quick"].set()
    run_clients(monkeypatch, make_at_once(uri, ready))
    give_up_at = time.monotonic() + WAIT_S
    made = list[int]()

    def is_loading() -> bool:
        if committed(uri) or time.monotonic() > give_up_at:
            raise UserError("the teacher could not start: out of memory")
        return True

    shards = stream_shards([feed(uri, "quick", [0, 1]), feed(uri, "slow", [2])], is_loading=is_loading)
    with pytest.raises(UserError, match="out of memory"):
        made.extend(each["shard"] for each in shards)
    ready["slow"].set()
    assert committed(uri) == 2 * len(made) > 0


def test_rows_that_come_back_are_progress_before_a_shard_is_finished(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finished, looks = Event(), list[float]()

    def clients(_: ClientSpec, tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        finished.wait(WAIT_S)
        yield store(uri, tasks[0]["shard"])

    def heard_at() -> float:
        looks.append(time.monotonic())
        if len(looks) == 2 * SILENCES:  # twice what a teacher may be silent
            finished.set()
        return looks[-1]

    run_clients(monkeypatch, clients)
    silences = []
    shards = list(
        stream_shards([feed(uri, "busy", [0], SOON_S)], lambda *said: silences.append(said), heard_at=heard_at)
    )
    assert [each["shard"] for each in shards] == [0]
    assert silences == []


@pytest.mark.parametrize("last_row_at", [-math.inf, 0.0])
def test_teacher_that_has_sent_no_row_for_the_deadline_ends_the_run(
    uri: str, monkeypatch: pytest.MonkeyPatch, last_row_at: float
) -> None:
    ended = Event()

    def clients(*_: Any) -> Iterator[dict[str, Any]]:
        ended.wait(WAIT_S)
        yield from ()

    run_clients(monkeypatch, clients)
    silences = list[tuple[float, int]]()
    shards = stream_shards(
        [feed(uri, "stuck", [0, 1], SOON_S)], lambda *said: silences.append(said), heard_at=lambda: last_row_at
    )
    with pytest.raises(DeadlineExceeded, match=r"\(deadlines.no_progress\): no row came back"):
        list(shards)
    ended.set()
    assert [(round(silent_s / SOON_S * SILENCES), missing) for silent_s, missing in silences] == [
        (number, 2) for number in range(1, SILENCES + 1)
    ]
