"""From no node to several and back to none, with Ray's own autoscaler and a simulated cloud on this machine.

``python -m benchmarks autoscaler [--nodes N] [--json FILE]``. A run of the echo teacher asks for its first replica
while there is only a head without a place for it; replicas follow the backlog by a run's own policy, nodes follow the
replicas. Printed are the seconds from the demand to the first row beside the delay of the cloud, the rows that were
lost or made twice as replicas went, and how long a node without a replica stayed.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.autoscaled_cluster import RESOURCE, AutoscaledCluster, Look, Shape, autoscaled_cluster
from benchmarks.echo import EchoScript, deploy, first_answer_at, start_serve, tokens_made
from benchmarks.run_echo import APP_NAME
from cluster.phases.generate import WINDOW_SLACK
from configs.schema import EngineConfig, GenerationConfig, TeacherConfig
from services.backlog import BacklogReporter

FIRST_ROW_GOAL_S = 5.0  # on top of the cloud's delay
IDLE_GOAL_S = 10.0  # on top of the idle timeout
ROW_S, ROWS_AT_ONCE = 0.5, 8  # so an engine makes 16 rows a second
SHARD_ROWS = 8
# One replica is enough for so many rows, so that the others go, and their nodes, while rows are still being made.
LAST_ROWS = 240
# A run waits for half a minute before it gives up a replica, and learns what replicas have to say every ten seconds.
QUICKER = {"downscale_delay_s": 1.0, "metrics_interval_s": 1.0, "look_back_period_s": 2.0}
DRAIN_S = 30.0
NODES_GONE_S = 60.0


@dataclass(frozen=True, slots=True)
class Moments:
    """When what happened (seconds of the clock): the demand, the cloud's part, then ours."""

    demanded: float
    asked: float
    delivered: float
    joined: float
    first_row: float
    first_shard: float

    @property
    def delay_s(self) -> float:
        """How long the cloud took."""
        return self.delivered - self.asked

    @property
    def first_row_s(self) -> float:
        """From the demand to the first row."""
        return self.first_row - self.demanded


@dataclass(frozen=True, slots=True)
class Rows:
    """What became of the planned rows; ``tokens_again`` were made and are in no row of the table."""

    planned: int
    lost: int
    doubled: int
    tokens_again: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run. ``nodes`` are their numbers as they changed, ``idle_s`` what each had nothing to do before it went."""

    shape: Shape
    moments: Moments
    nodes: list[int]
    rows: Rows
    run_s: float
    idle_s: list[float]

    @property
    def meets_goals(self) -> bool:
        """All of the goals."""
        return (
            self.moments.first_row_s <= self.moments.delay_s + FIRST_ROW_GOAL_S
            and (self.rows.lost, self.rows.doubled) == (0, 0)
            and self.nodes[-1] == 0
            and max(self.idle_s) <= self.shape.idle_timeout_s + IDLE_GOAL_S
        )


def main(arguments: list[str]) -> int:
    """Print what was measured; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks autoscaler", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, help="worker nodes at most, each with one replica")
    parser.add_argument("--rows", type=int, default=800, help=f"rows of the run, a multiple of {SHARD_ROWS}")
    parser.add_argument("--provider-delay", type=float, default=15.0, help="seconds until the cloud has a machine")
    parser.add_argument("--idle-timeout", type=float, default=6.0, help="seconds that a node is idle before it may go")
    parser.add_argument("--look-every", type=int, default=1, help="seconds between two looks of Ray's autoscaler")
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    options = parser.parse_args(arguments)
    if options.rows % SHARD_ROWS:
        parser.error(f"--rows must be a multiple of {SHARD_ROWS}, not {options.rows}")
    shape = Shape(options.nodes, options.provider_delay, options.idle_timeout, options.look_every)
    with autoscaled_cluster(shape) as cluster:
        result = _measure(cluster, shape, options.rows)
    print(describe(result))
    if options.json:
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    if not result.meets_goals:
        print("goals missed", file=sys.stderr)
    return 0 if result.meets_goals else 1


def numbers_of_nodes(looks: Sequence[Look]) -> list[int]:
    """How many nodes there were, each change once."""
    return [number for number, _ in groupby(len(look.nodes) for look in looks)]


def idle_times(looks: Sequence[Look]) -> list[float]:
    """Seconds from the last look that saw a replica on a node to the first without the node, as they went.

    A node that never had a replica counts from when it came; one that is still there is left out.
    """
    last_busy: dict[str, float] = {}
    idle = []
    for look in looks:
        for node in sorted(last_busy.keys() - look.nodes.keys()):
            idle.append(look.at - last_busy.pop(node))
        for node, is_busy in look.nodes.items():
            if is_busy or node not in last_busy:
                last_busy[node] = look.at
    return idle


def count_rows(planned: int, rows: Sequence[tuple[str, int]], made: int) -> Rows:
    """What the table's rows, ``(prompt id, tokens)`` each, say of the planned ones and of the tokens that were made."""
    found = len({prompt_id for prompt_id, _ in rows})
    return Rows(planned, planned - found, len(rows) - found, made - sum(tokens for _, tokens in rows))


def describe(result: Measurement) -> str:
    """The measurement as a table for people."""
    moments, shape, rows = result.moments, result.shape, result.rows
    parts = {
        "demand to the autoscaler asking the cloud": moments.asked - moments.demanded,
        "the cloud's delay": moments.delay_s,
        "raylet up and in the cluster": moments.joined - moments.delivered,
        "replica up and first row": moments.first_row - moments.joined,
    }
    idle = ", ".join(f"{seconds:.1f}" for seconds in result.idle_s)
    lines = [f"{seconds:7.1f} s  {part}" for part, seconds in parts.items()]
    lines += [
        f"{moments.first_row_s:7.1f} s  demand to first row (goal: the delay + {FIRST_ROW_GOAL_S:.0f} s = "
        f"{moments.delay_s + FIRST_ROW_GOAL_S:.1f}); its shard was committed after "
        f"{moments.first_shard - moments.demanded:.1f} s",
        f"nodes {' -> '.join(str(number) for number in result.nodes)}; the run took {result.run_s:.1f} s",
        f"rows {rows.planned:,}: {rows.lost} lost, {rows.doubled} doubled (goal: 0), "
        f"{rows.tokens_again} tokens made for nothing",
        f"idle nodes gone after {idle} s (goal: the idle timeout of {shape.idle_timeout_s:g} s + {IDLE_GOAL_S:.0f} s)",
        f"the autoscaler looks every {shape.look_every_s} s; an engine makes {ROWS_AT_ONCE / ROW_S:.0f} rows/s; "
        f"one replica does for the last {LAST_ROWS} rows",
    ]
    return "\n".join(lines)


def _measure(cluster: AutoscaledCluster, shape: Shape, num_rows: int) -> Measurement:
    from ray import serve

    from benchmarks.run_echo import run_rows

    tally = cluster.directory / "tally"
    tally.mkdir()
    start_serve()
    generation = GenerationConfig(
        shard_rows=SHARD_ROWS, window_rows=round(WINDOW_SLACK * ROWS_AT_ONCE * shape.nodes), rows_per_call=4, clients=1
    )
    script = EchoScript(latency_s=ROW_S, rows_at_once=ROWS_AT_ONCE, spread=0.25, tally=str(tally))
    scaling = _scaling(shape.nodes)
    first_shard: list[float] = []
    demanded = time.time()
    deploy(APP_NAME, script, scaling=scaling, wait=False)
    with BacklogReporter(serve.get_app_handle(APP_NAME), num_rows, None) as backlog:

        def on_shard() -> None:
            if not first_shard:
                first_shard.append(time.time())
            backlog.take_off(SHARD_ROWS)

        run_rows(cluster.directory, num_rows, generation, on_shard, name="run")
    ended = time.time()
    serve.delete(APP_NAME, _blocking=False)  # as HAND OVER does
    cluster.wait_for(lambda look: not look.nodes, shape.idle_timeout_s + NODES_GONE_S, "cluster without worker nodes")
    cluster.stop_looking()
    return Measurement(
        shape=shape,
        moments=_moments(cluster, demanded, first_answer_at(tally), first_shard[0]),
        nodes=numbers_of_nodes(cluster.looks),
        rows=count_rows(num_rows, _read_rows(cluster.directory / "run" / "completions"), tokens_made(tally)),
        run_s=ended - demanded,
        idle_s=idle_times(cluster.looks),
    )


def _scaling(nodes: int) -> dict[str, Any]:
    """The scaling of a run, one replica a node."""
    from services.deployment import backlog_scaling  # imports Ray Serve

    teacher = TeacherConfig(model="echo", engine=EngineConfig(max_num_seqs=LAST_ROWS), max_replicas=nodes)
    options = backlog_scaling(teacher)
    options["autoscaling_config"] |= QUICKER
    return options | {
        "graceful_shutdown_timeout_s": DRAIN_S,
        "ray_actor_options": {"num_cpus": 1, "resources": {RESOURCE: 1}},
    }


def _moments(cluster: AutoscaledCluster, demanded: float, first_row: float, first_shard: float) -> Moments:
    first: dict[str, float] = {}
    for line in cluster.events.read_text().splitlines():
        event = json.loads(line)
        first.setdefault(event["event"], event["at"])
    joined = next(look.at for look in cluster.looks if look.nodes)
    return Moments(demanded, first["asked"], first["delivered"], joined, first_row, first_shard)


def _read_rows(completions: Path) -> list[tuple[str, int]]:
    from deltalake import DeltaTable

    table = DeltaTable(str(completions)).to_pyarrow_table(columns=["prompt_id", "num_completion_tokens"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
