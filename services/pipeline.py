"""The Ray Data pipeline of GENERATE: pending shards stream through a few long-lived client actors and are committed.

The process that runs it is the only writer of its tables: clients store files, and all files that are ready are added
in one transaction. So a cluster of many clients does not race for the log, and a client holds nothing of it.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, Queue
from threading import Barrier, BrokenBarrierError, Event, Thread
from typing import Any

import ray
from deltalake.transaction import AddAction
from ray.data import ActorPoolStrategy, DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from configs.errors import DeadlineExceeded, UserError
from configs.table import COMPLETIONS_SCHEMA
from services.client import ClientSpec, ShardClient
from services.dataset import count_rows
from services.table import StoredFile, TableWriter

CLIENT_CPUS = 0.5  # a client mostly waits for the teacher; on two cores it must fit beside one replica
COMMIT_EVERY_S = 0.5  # a transaction costs some 30 ms of a core, however many shards are in it
SILENCES = 10  # reports of no progress before the run gives up
LOAD_LOOK_S = 0.25  # at teachers that still load
STREAM_END_S = 5.0  # for the pipeline to end by itself before its cluster is taken away

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Feed:
    """One teacher's part of a run: what its clients need to know, and its shards, each ``{table, shard, path}``."""

    spec: ClientSpec
    tasks: list[dict[str, Any]]


class EndWithReader(ExecutionCallback):
    """Ends a pipeline whose reader is gone, which Ray Data would let go on.

    A thread of it that waits for data outlives Ray otherwise, and a process that asks a Ray that is gone is ended at
    once by Ray. Ray Data makes the instances, and sends the class to its workers: hence one event for all pipelines.
    """

    has_ended = Event()

    def on_execution_step(self, executor: Any) -> None:
        """Called several times a second."""
        if self.has_ended.is_set():
            raise StopIteration  # which Ray Data takes for the end of the data


def stream_shards(
    feeds: list[Feed],
    on_silence: Callable[[float, int], None] = lambda *_: None,
    is_loading: Callable[[], bool] = lambda: False,
    heard_at: Callable[[], float] = lambda: -math.inf,
) -> Generator[Summary]:
    """Make the shards of each teacher, all at the same time; yields a summary as each is committed.

    Claims the tables first: of two commands on one run the later goes on, and the earlier stops. ``on_silence`` is told
    of the seconds without a row and of the shards that are missing, ten times before the run gives up. ``heard_at`` is
    when a teacher has last answered a row (`time.monotonic`), which is progress as a shard is. ``is_loading`` is asked
    again and again until each teacher can answer; the shards of those that can are committed meanwhile.

    Raises:
        UserError: why the run cannot go on, such as a later command.
        DeadlineExceeded: neither row nor shard came for ``spec.shard_deadline_s``; Ray Data itself would wait for ever.
    """
    spec, tasks = feeds[0].spec, [task for feed in feeds for task in feed.tasks]
    uris = {name: spec.tables[name].completions_uri for name in sorted({task["table"] for task in tasks})}
    writers = {name: TableWriter(uri, COMPLETIONS_SCHEMA, spec.commit_deadline_s) for name, uri in uris.items()}
    committed = {(name, file.shard): file for name, writer in writers.items() for file in writer.files()}
    waiting = set()
    for task in tasks:
        key = task["table"], task["shard"]
        if key in committed:  # by another command, before this one claimed the table
            yield {"table": key[0], "shard": key[1], "completion_tokens": 0, **count_rows(committed[key])}
        else:
            waiting.add(key)
    if not waiting:
        return

    def watch(silent_s: float) -> None:
        for writer in writers.values():
            writer.require_newest()
        if silent_s:
            on_silence(silent_s, len(waiting))

    with _Stream(
        [partial(_run_clients, feed.spec, todo) for feed in feeds if (todo := _left(feed, waiting))]
    ) as stream:
        while waiting:
            summaries, error = stream.take(spec.shard_deadline_s, watch, is_loading, heard_at)
            fresh = {(each["table"], each["shard"]): each for each in summaries}
            fresh = {key: each for key, each in fresh.items() if key in waiting}  # Ray may run a lost task again
            for name, writer in writers.items():
                if files := [_to_action(each.pop("file")) for key, each in fresh.items() if key[0] == name]:
                    writer.add(files)
            waiting -= fresh.keys()
            yield from fresh.values()
            if error is not None and waiting:
                raise error


def _left(feed: Feed, waiting: set[tuple[str, int]]) -> list[dict[str, Any]]:
    return [task for task in feed.tasks if (task["table"], task["shard"]) in waiting]


def _run_clients(spec: ClientSpec, tasks: list[dict[str, Any]]) -> Generator[Summary]:
    """The clients' summaries, as they come."""
    context = DataContext.get_current()
    context.enable_progress_bars = False  # the run has one progress display of its own
    context.custom_execution_callback_classes = [EndWithReader]
    context.max_errored_blocks = 0  # a block that fails is a fault of the run, never a silent loss
    # A client retries transient errors itself; what it raises would fail again.
    context.actor_task_retry_on_errors = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its progress bars are off
    clients = min(spec.generation.clients, len(tasks))
    # Shards wait with a client as well: the first that is there must not take those of the others.
    shards_at_once = min(spec.shards_at_once, math.ceil(len(tasks) / clients))
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        ShardClient,
        fn_constructor_args=(spec,),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=CLIENT_CPUS,
        **({"label_selector": spec.node_labels} if spec.node_labels else {}),
        compute=ActorPoolStrategy(
            size=clients,
            max_tasks_in_flight_per_actor=shards_at_once,
            max_concurrent_calls_per_actor=shards_at_once,
            enable_true_multi_threading=True,
        ),
    )
    for summary in dataset.iter_rows():
        if (error := summary.pop("error")) is not None:
            raise UserError(error)
        yield summary


def _to_action(file: str) -> AddAction:
    return StoredFile(**json.loads(file))


class _Stream:
    """Runs each teacher's clients on a thread, so that what they report can be taken together, with a deadline.

    A process has one at a time.
    """

    def __init__(self, sources: list[Callable[[], Generator[Summary]]]) -> None:
        self._queue: Queue[Summary | Exception] = Queue()
        self._taken_at = 0.0
        self._last = Barrier(len(sources), action=self._end)
        self._threads = [
            Thread(target=self._pump, args=(each,), name="generate-stream", daemon=True) for each in sources
        ]

    def __enter__(self) -> "_Stream":
        EndWithReader.has_ended.clear()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        EndWithReader.has_ended.set()
        self._last.abort()
        give_up_at = time.monotonic() + STREAM_END_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, give_up_at - time.monotonic()))

    def take(
        self,
        deadline_s: float,
        watch: Callable[[float], None],
        is_loading: Callable[[], bool],
        heard_at: Callable[[], float],
    ) -> tuple[list[Summary], Exception | None]:
        """All summaries that are there, at least one, and the error that ended the stream after them, if any."""
        items = [self._while_loading(is_loading) or self._first(deadline_s, watch, heard_at)]
        time.sleep(max(0.0, self._taken_at + COMMIT_EVERY_S - time.monotonic()))
        self._taken_at = time.monotonic()
        items += self._rest()
        summaries = [each for each in items if isinstance(each, dict)]
        return summaries, next((each for each in items if isinstance(each, Exception)), None)

    def _while_loading(self, is_loading: Callable[[], bool]) -> Summary | Exception | None:
        """The first item that comes before all teachers can answer; None when they can. Their wait has its own end."""
        try:
            while is_loading():
                with suppress(Empty):
                    return self._queue.get(timeout=LOAD_LOOK_S)
        except UserError as error:  # of one teacher; what others have made is committed before it is raised
            return error
        return None

    def _first(
        self, deadline_s: float, watch: Callable[[float], None], heard_at: Callable[[], float]
    ) -> Summary | Exception:
        silences, pause_s = 0, deadline_s / SILENCES
        while silences < SILENCES:
            since = time.monotonic()
            with suppress(Empty):
                return self._queue.get(timeout=pause_s)
            silences = 0 if heard_at() > since else silences + 1
            watch(silences * pause_s)
        return DeadlineExceeded(
            f"generation made no progress for {deadline_s:.0f} s (deadlines.no_progress): no row came back"
        )

    def _rest(self) -> Iterator[Summary | Exception]:
        try:
            while True:
                yield self._queue.get_nowait()
        except Empty:
            return

    def _pump(self, summaries: Callable[[], Generator[Summary]]) -> None:
        try:
            with closing(summaries()) as stream:
                for summary in stream:
                    self._queue.put(summary)
            self._last.wait()
        except BrokenBarrierError:  # the reader has all it wants
            return
        except Exception as error:  # raised again by the reader
            self._queue.put(error)

    def _end(self) -> None:
        self._queue.put(UserError("the teacher's clients ended before all shards were made; run the command again"))
