"""What more nodes are worth: rows a second on 1, 16 and 64 simulated nodes, each with one replica of an echo teacher.

``python -m benchmarks nodes [--nodes N ...] [--json FILE]``. All nodes are on this machine, in a cluster that grows;
the teacher's engine sleeps, so what is measured is how well plan, clients, routing and commit keep all replicas full.
Efficiency is rows/s(N) / (N x rows/s(1)) in the steady part of a run. The core-seconds that the head uses are printed
beside it, and those of the nodes, which a real cluster has elsewhere.
"""

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

from benchmarks.echo import EchoScript
from benchmarks.node_cluster import LOOK_UPS, NodeCluster, node_cluster
from cluster.phases.generate import WINDOW_SLACK
from configs.schema import GenerationConfig
from services.client import ClientSpec, ShardClient

STEADY = (0.05, 0.95)
REPLICA_PREFIX = "SERVE_REPLICA::"
NODE_MIB, SPARE_MIB = 280, 2048  # a node with its replica; what the rest of the machine may still need
GOALS = {16: 0.95, 64: 0.90}
MORE_ALONE = 1.5  # so many times the waves for one node: all ratios rest on it
HEAD = ("gcs", "raylet", "controller", "driver", "clients", "other")


class CountingClient(ShardClient):
    """A client that notes each actor that is looked up in its process."""

    def __init__(self, spec: ClientSpec) -> None:
        import ray

        file, get_actor = Path(os.environ[LOOK_UPS]) / str(os.getpid()), ray.get_actor

        def get_and_note(name: str, *arguments: Any, **options: Any) -> Any:
            with open(file, "a") as notes:
                notes.write(f"{name}\n")
            return get_actor(name, *arguments, **options)

        ray.get_actor = get_and_note
        super().__init__(spec)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of nodes. ``cpu`` are cores that each part kept busy; ``full`` is of what the engines could make."""

    nodes: int
    clients: int
    rows: int
    start_s: float
    rows_per_s: float
    full: float
    efficiency: float
    cpu: dict[str, float]
    head_cores: float
    head_core_ms_per_row: float
    machine_share: float
    look_ups: int
    look_ups_allowed: int
    other_look_ups: int
    pss_mib: dict[str, float]


def main(arguments: list[str]) -> int:
    """Print a line for each number of nodes; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks nodes", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--clients", type=int, default=2, help="client actors; never more than nodes")
    parser.add_argument("--latency", type=float, default=24.0, help="seconds of a row in the engine, in the mean")
    parser.add_argument("--spread", type=float, default=0.25, help="rows take so much more or less of that")
    parser.add_argument("--rows-at-once", type=int, default=128, help="rows that an engine decodes at a time")
    parser.add_argument("--waves", type=float, default=8.0, help="rows of a run, in engines filled")
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    options = parser.parse_args(arguments)
    results: list[Measurement] = []
    with node_cluster() as cluster:
        for nodes in sorted({1, *options.nodes}):
            if (most := nodes_that_fit(len(cluster.cluster.worker_nodes))) < nodes:
                print(f"{nodes} nodes do not fit into memory: {most} would", flush=True)
                nodes = most
                if results and nodes <= results[-1].nodes:
                    break
            results.append(_measure(cluster, nodes, options, results[0] if results else None))
            print(_line(results[-1]), flush=True)
    _print_conclusion(results, options)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")
    return 0 if all(_reaches_goal(each) for each in results) else 1


def steady_rate(moments: Sequence[tuple[float, int]], num_rows: int) -> float:
    """Rows a second between 5 % and 95 % of ``num_rows``: the slope of the line through ``(time, rows so far)``.

    Shards are committed several at once; two of the moments alone would err by one such lump.
    """
    low, high = (share * num_rows for share in STEADY)
    steady = [(at, rows) for at, rows in moments if low <= rows <= high]
    if len({at for at, _ in steady}) < 2:
        raise ValueError(f"a rate needs two moments in the steady part, not {len(steady)}")
    times, rows = np.asarray(steady, dtype=float).T
    return float(np.polyfit(times - times[0], rows, 1)[0])


def shard_rows(nodes: int) -> int:
    """Rows of a shard: at least forty in a run, so that the steady part can be told, and no more than by default."""
    return min(512, 32 * nodes)


def count_look_ups(names: Sequence[str]) -> tuple[int, int]:
    """Look-ups of replicas, and of other actors such as Serve's controller."""
    replicas = sum(name.startswith(REPLICA_PREFIX) for name in names)
    return replicas, len(names) - replicas


def nodes_that_fit(present: int) -> int:
    """How many nodes there could be, by the memory that is free beside the ``present`` ones."""
    free_mib = psutil.virtual_memory().available / 2**20 - SPARE_MIB
    return present + max(0, math.floor(free_mib / NODE_MIB))


def _measure(cluster: NodeCluster, nodes: int, options: argparse.Namespace, alone: Measurement | None) -> Measurement:
    import services.pipeline  # imports Ray
    from benchmarks.run_echo import run_rows

    started = time.monotonic()
    script = EchoScript(latency_s=options.latency, rows_at_once=options.rows_at_once, spread=options.spread)
    cluster.grow(nodes, script)
    start_s = time.monotonic() - started
    clients = min(options.clients, nodes)
    shard = shard_rows(nodes)
    waves = options.waves * (MORE_ALONE if nodes == 1 else 1.0)
    num_rows = shard * math.ceil(waves * options.rows_at_once * nodes / shard)
    window = round(WINDOW_SLACK * options.rows_at_once * nodes / clients)
    generation = GenerationConfig(shard_rows=shard, window_rows=window, rows_per_call=32, clients=clients)
    look_ups = Path(os.environ[LOOK_UPS])
    for file in look_ups.iterdir():
        file.unlink()
    moments: list[tuple[float, int]] = []
    snapshots: list[tuple[float, Counter[str]]] = []
    memory: Counter[str] = Counter()

    def on_shard() -> None:
        rows = (len(moments) + 1) * shard
        moments.append((time.monotonic(), rows))
        if len(snapshots) < 2 and rows >= STEADY[len(snapshots)] * num_rows:
            snapshots.append((time.monotonic(), cluster.cpu_s()))
            if len(snapshots) == 2:
                memory.update(cluster.pss_mib())

    with patch.object(services.pipeline, "ShardClient", CountingClient):
        run_rows(cluster.directory, num_rows, generation, on_shard)
    rate = steady_rate(moments, num_rows)
    (begun, before), (ended, after) = snapshots
    cpu = {group: (after[group] - before[group]) / (ended - begun) for group in (*HEAD, "nodes")}
    head_cores = sum(cpu[group] for group in HEAD)
    names = [name for file in look_ups.iterdir() for name in file.read_text().split()]
    of_replicas, others = count_look_ups(names)
    return Measurement(
        nodes=nodes,
        clients=clients,
        rows=num_rows,
        start_s=start_s,
        rows_per_s=rate,
        full=rate * options.latency / (options.rows_at_once * nodes),
        efficiency=1.0 if alone is None else rate / (nodes * alone.rows_per_s),
        cpu=cpu,
        head_cores=head_cores,
        head_core_ms_per_row=1000 * head_cores / rate,
        machine_share=sum(cpu.values()) / (psutil.cpu_count() or 1),
        look_ups=of_replicas,
        look_ups_allowed=clients * nodes,
        other_look_ups=others,
        pss_mib=dict(memory),
    )


def _reaches_goal(result: Measurement) -> bool:
    return result.efficiency >= GOALS.get(result.nodes, 0.0) and result.look_ups <= result.look_ups_allowed


def _line(result: Measurement) -> str:
    goal = f" (goal {GOALS[result.nodes]:.2f})" if result.nodes in GOALS else ""
    parts = "  ".join(f"{group} {result.cpu[group]:.3f}" for group in HEAD)
    memory_mib, nodes_mib = sum(result.pss_mib.values()), result.pss_mib.get("nodes", 0.0)
    return (
        f"{result.nodes:3d} nodes  {result.rows:6,d} rows  {result.rows_per_s:7.1f} rows/s  "
        f"efficiency {result.efficiency:.3f}{goal}  engines {result.full:.1%} full\n"
        f"    cores of the head: {parts}  = {result.head_cores:.3f} ({result.head_core_ms_per_row:.2f} core-ms a row); "
        f"of the nodes {result.cpu['nodes']:.3f}; {result.machine_share:.0%} of the machine's\n"
        f"    look-ups of replicas {result.look_ups} (at most {result.clients} clients x {result.nodes} = "
        f"{result.look_ups_allowed}), of others {result.other_look_ups}; memory {memory_mib:,.0f} MiB, "
        f"{nodes_mib / result.nodes:.0f} a node; started in {result.start_s:.0f} s"
    )


def _print_conclusion(results: list[Measurement], options: argparse.Namespace) -> None:
    print(
        f"a row takes {options.latency:g} s give or take {options.spread:.0%}, {options.rows_at_once} at a time in an "
        f"engine, {WINDOW_SLACK} of that in the window; {psutil.cpu_count()} cores for head and nodes together"
    )
    missed = [str(each.nodes) for each in results if not _reaches_goal(each)]
    unmeasured = [str(nodes) for nodes in options.nodes if nodes not in {each.nodes for each in results}]
    if missed:
        print(f"goals missed at {', '.join(missed)} nodes", file=sys.stderr)
    if unmeasured:
        print(f"not measured, as they do not fit: {', '.join(unmeasured)} nodes", file=sys.stderr)
