"""Teacher and student side by side against phases in turn and against a split for good, on simulated nodes.

``python -m benchmarks makespan [--modes MODE ...] [--json FILE]``. The phases, Serve, Ray Data and Ray Train are those
of a run, on labelled nodes of one CPU; the teacher's engine and the student's steps sleep, so what is measured is how
well both sides keep the nodes at work. The bound is their work ÷ all nodes, start-up excluded: what nodes waited for
their workers to load, and all of them for the clients, is added to the work. ``overlapped`` is held against goals;
``split`` is the same without the nodes that the teacher gives back, ``in_turn`` has all nodes for each phase.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.echo import EchoScript, deploy, first_answer_at
from benchmarks.node_cluster import OBJECT_STORE_BYTES, SYSTEM_CONFIG
from benchmarks.ray_cluster import ray_home
from benchmarks.run_echo import make_tokenizer
from benchmarks.sleeping_student import read_groups, sleeping_worker
from configs.load import parse_run_config
from configs.schema import RunConfig
from training import storage

MODES = ("overlapped", "in_turn", "split")
POOL = "stillhouse/pool"
HEAD_CPUS = 1  # for a client
SPREAD = 0.25  # rows take so much more or less of the mean time
BATCH, WINDOW, SHARD, AT_ONCE = 16, 32, 16, 16  # rows
GOAL_BOUND, GOAL_FIRST = 1.03, 0.15


@dataclass(frozen=True, slots=True)
class Measurement:
    """One mode; seconds are from the moment when the teacher's replicas could answer."""

    mode: str
    makespan_s: float
    bound_s: float
    clients_s: float
    first_step_s: float
    teacher_s: float
    starts_s: list[float]
    workers: list[int]

    @property
    def of_bound(self) -> float:
        return self.makespan_s / self.bound_s

    @property
    def first_share(self) -> float:
        return self.first_step_s / self.makespan_s


def main(arguments: list[str]) -> int:
    """Print a line for each mode; 1 when overlapped misses a goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks makespan", description=__doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--teacher-nodes", type=int, default=2, help="of them, while both sides work")
    parser.add_argument("--teacher-work", type=float, default=240.0, help="node-seconds")
    parser.add_argument("--student-work", type=float, default=600.0, help="node-seconds")
    parser.add_argument("--rows", type=int, default=1920)
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    options = parser.parse_args(arguments)
    results = []
    for mode in options.modes:
        with simulated_nodes(options.nodes, options.teacher_nodes) as directory:
            results.append(measure(mode, directory, options))
        print(_line(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")
    missed = [each for each in results if each.mode == "overlapped" and not _reaches_goals(each)]
    if missed:
        print(f"goals missed: {GOAL_BOUND} of the bound, first step by {GOAL_FIRST} of the makespan", file=sys.stderr)
    return 1 if missed else 0


@contextmanager
def simulated_nodes(nodes: int, teacher_nodes: int) -> Iterator[Path]:
    """A head with room for a client, and labelled nodes of one CPU; all is gone when the block ends."""
    with ray_home("makespan", {"RAY_memory_monitor_refresh_ms": "0"}) as home:
        import ray  # after the environment, which it reads
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        home.ends.callback(cluster.shutdown)
        cluster.add_node(
            num_cpus=HEAD_CPUS,
            object_store_memory=4 * OBJECT_STORE_BYTES,
            include_dashboard=False,
            include_log_monitor=False,
            temp_dir=str(home.directory / "ray"),
            _system_config=SYSTEM_CONFIG,
        )
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR", namespace="serve")
        for number in range(nodes):
            labels = {POOL: "teacher" if number < teacher_nodes else "student"}
            cluster.add_node(
                num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, labels=labels, include_log_monitor=False
            )
        yield home.directory


def make_config(mode: str, directory: Path, options: argparse.Namespace) -> RunConfig:
    """The recipe of a mode, and its prompts and tokenizer in ``directory``."""
    teacher, prompts = directory / "teacher", directory / "prompts.jsonl"
    make_tokenizer(teacher)
    (teacher / "config.json").write_text("{}")
    (teacher / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    prompts.write_text("".join(json.dumps({"prompt": f"problem {n} of many"}) + "\n" for n in range(options.rows)))
    student_nodes = options.nodes - options.teacher_nodes
    replicas, workers, cluster = options.nodes, options.nodes, {}
    if mode != "in_turn":
        replicas, workers = options.teacher_nodes, student_nodes
        cluster = {"teacher_labels": {POOL: "teacher"}, "student_labels": {POOL: "student"}, "phases": "overlapped"}
    tree = {
        "name": mode,
        "run_dir": str(directory / "run"),
        "teacher": {"model": str(teacher), "min_replicas": replicas, "max_replicas": replicas},
        "prompts": {"source": str(prompts)},
        "sampling": {"max_tokens": 32, "temperature": 0.0},
        "generation": {"shard_rows": SHARD, "rows_per_call": 8, "window_rows": 2 * AT_ONCE * replicas},
        "student": {"init": {"model_type": "llama", "arguments": {"hidden_size": 16}}, "device": "cpu"},
        "training": {
            "batch_sequences": BATCH,
            "packing_window_rows": WINDOW,
            "max_steps": options.rows // BATCH,
            "log_every": 1,
            "num_workers": [workers, options.nodes] if mode == "overlapped" else workers,
            "resize_check_every": 3600,
        },
        "terms": {"prompts": {"license": "own"}},
        "cluster": cluster,
    }
    return parse_run_config(tree, "the benchmark's recipe")


def measure(mode: str, directory: Path, options: argparse.Namespace) -> Measurement:
    """Do the phases from PLAN to TRAIN on the cluster that this process has joined."""
    import training.trainer
    from cluster.context import RunContext
    from cluster.phases import generate
    from cluster.phases.overlap import generate_and_train
    from cluster.phases.plan import plan
    from cluster.phases.train import student_job
    from cluster.progress import Progress
    from cluster.run_dir import RunDir
    from cluster.session import Session
    from cluster.teachers import app_name

    config = make_config(mode, directory, options)
    run_dir, ready_at, asked_at = RunDir.of(config), list[float](), list[float]()
    row_s, tally = options.teacher_work * AT_ONCE / options.rows, directory / "tally"
    tally.mkdir()
    script = EchoScript(row_s, rows_at_once=AT_ONCE, spread=SPREAD, tally=str(tally))

    def start_echo(*_: Any) -> dict[str, Any]:
        from ray import serve

        name, labels = app_name(config, config.main_teacher), config.cluster.teacher_labels
        actor = {"num_cpus": 1, **({"label_selector": labels} if labels else {})}
        replicas = config.pool[config.main_teacher].max_replicas
        deploy(name, script, scaling={"num_replicas": replicas, "ray_actor_options": actor})
        return {config.main_teacher: serve.get_app_handle(name)}

    def read_echo(*_: Any) -> dict[str, Any]:
        ready_at.append(time.time())
        return {"engine": "echo"}

    def note_and_fit(*arguments: Any, **named: Any) -> Any:
        asked_at.append(time.time())
        return fit_jobs(*arguments, **named)

    fit_jobs, worker = training.trainer.fit_jobs, partial(sleeping_worker, row_s=options.student_work / options.rows)
    with ExitStack() as stack:
        for place, name, stand_in in (
            (generate, "start_teachers", start_echo),
            (generate, "read_engine", read_echo),
            (training.trainer, "fit_jobs", note_and_fit),
            (training.trainer, "_run_worker", worker),
        ):
            stack.enter_context(patch.object(place, name, stand_in))
        progress = stack.enter_context(Progress(config.name, run_dir))
        ctx = stack.enter_context(RunContext(config, run_dir, progress))
        ctx._session = Session(embedded=False)  # that this process has joined
        for phase in (plan, generate_and_train):
            phase(ctx)
        job = student_job(ctx)
        record = run_dir.phase_record("generate") or {}
    assert record["ledger"]["accepted"] == options.rows, record
    # As if the first row had taken longest, which says the least of the clients.
    clients_s = max(0.0, first_answer_at(tally) - row_s * (1 + SPREAD) - ready_at[0])
    return summarise(mode, options, ready_at[0], asked_at, clients_s, job.output_dir, record["writing_s"])


def summarise(
    mode: str,
    options: argparse.Namespace,
    ready_at: float,
    asked_at: list[float],
    clients_s: float,
    output_dir: str,
    teacher_s: float,
) -> Measurement:
    """Hold what happened against the bound."""
    lines = [json.loads(line) for line in storage.read_lines(storage.join(output_dir, "metrics.jsonl"))]
    groups = read_groups(output_dir)
    assert len(groups) == len(asked_at), (groups, asked_at)
    starts_s = [group["up"] - asked for group, asked in zip(groups, asked_at, strict=True)]
    # A group that takes another's place stands still from that one's end on, and so do the nodes that it is given.
    starts_s[1:] = [group["up"] - before["down"] for before, group in pairwise(groups)]
    waited = sum(start_s * group["size"] for start_s, group in zip(starts_s, groups, strict=True))
    waited += clients_s * options.nodes  # without rows the student's have nothing to do either
    return Measurement(
        mode=mode,
        makespan_s=lines[-1]["time"] - ready_at,
        clients_s=clients_s,
        bound_s=(options.teacher_work + options.student_work + waited) / options.nodes,
        first_step_s=lines[0]["time"] - ready_at,
        teacher_s=teacher_s,
        starts_s=starts_s,
        workers=[group["size"] for group in groups],
    )


def _reaches_goals(result: Measurement) -> bool:
    return result.of_bound <= GOAL_BOUND and result.first_share <= GOAL_FIRST


def _line(result: Measurement) -> str:
    starts = ", ".join(f"{start_s:.1f}" for start_s in result.starts_s)
    return (
        f"{result.mode:10}  makespan {result.makespan_s:6.1f} s  {result.of_bound:.3f} of the bound "
        f"({result.bound_s:.1f} s)  first step at {result.first_share:.3f} of it ({result.first_step_s:.1f} s)\n"
        f"    teacher done after {result.teacher_s:.1f} s; clients took {result.clients_s:.1f} s to "
        f"start, workers {result.workers} {starts} s"
    )
