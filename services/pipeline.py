"""The Ray Data pipeline of GENERATE: pending shards stream through a few long-lived client actors."""

import logging
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from configs.errors import UserError
from configs.table import COMPLETIONS_SCHEMA
from services.client import ClientSpec, ShardClient
from services.table import claim

SHARDS_AT_ONCE = 3  # of one client: the next shards' rows fill the window while the last rows of one are awaited
CLIENT_CPUS = 0.5  # a client mostly waits for the teacher; on two cores it must fit beside one replica


def stream_shards(spec: ClientSpec, tasks: list[dict[str, Any]]) -> Generator[dict[str, Any]]:
    """Make the shard of each task ``{table, shard, path}``; yields a summary as each is committed.

    Claims the tables first: of two commands on one run the later goes on, and the earlier stops.

    Raises:
        UserError: a client says why the run cannot go on, such as a deadline or a later command.
    """
    spec = replace(spec, writers=_claim(spec, {task["table"] for task in tasks}))
    context = DataContext.get_current()
    context.enable_progress_bars = False  # the run has one progress display of its own
    context.max_errored_blocks = 0  # a block that fails is a fault of the run, never a silent loss
    # A client retries transient errors itself; what it raises would fail again.
    context.actor_task_retry_on_errors = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that its progress bars are off
    clients = min(spec.generation.clients, len(tasks))
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        ShardClient,
        fn_constructor_args=(spec,),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=CLIENT_CPUS,
        compute=ActorPoolStrategy(
            size=clients,
            max_tasks_in_flight_per_actor=SHARDS_AT_ONCE,
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
    )
    for summary in dataset.iter_rows():
        if (error := summary.pop("error")) is not None:
            raise UserError(error)
        yield summary


def _claim(spec: ClientSpec, names: set[str]) -> dict[str, int]:
    uris = {name: spec.tables[name].completions_uri for name in sorted(names)}
    return {name: claim(uri, COMPLETIONS_SCHEMA, spec.commit_deadline_s) for name, uri in uris.items()}
