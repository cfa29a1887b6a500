"""One arm as a process: it starts its engine once and then runs what it is told, a JSON line in and one out.

`child` starts it. Standard output carries the answers alone; what libraries print goes to standard error.
"""

import json
import os
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.answers import say, take_stdout
from benchmarks.generation.arms import Arm, ArmSettings, RowDone
from benchmarks.generation.engine import CORE_VARIABLE, RECORDS_VARIABLE, Cores, engine_environment, read_records
from benchmarks.generation.workloads import Name, WorkItem, build_workload, duplicated, shuffled
from benchmarks.processes import ROOT

IN_PROCESS = ("ours", "llm")  # arms, by the first word of their name, whose engine is not a process of its own


@dataclass(frozen=True, slots=True)
class Order:
    """What the driver asks for. An engine has a new ``seed`` for each run of a workload: its cache knows no prompt."""

    workload: Name
    num_rows: int
    seed: int
    number: int
    variant: str = "plain"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an arm answers: Unix times of begin and end, and a ``(seconds since the begin, tokens)`` for each row."""

    begun: float
    ended: float
    completions: list[tuple[float, int]]


def main(arguments: list[str]) -> int:
    """Serve orders until standard input ends."""
    told = json.loads(arguments[0])
    answers = take_stdout()
    name, cores = told["name"], Cores(told["engine_core"], frozenset(told["other_cores"]))
    settings = ArmSettings(**told["settings"] | {"directory": Path(told["settings"]["directory"])})
    records = settings.directory / "records"
    records.mkdir()
    os.sched_setaffinity(0, {cores.engine, *cores.others})  # start-up has them all; `child` takes them away afterwards
    os.environ.update(engine_environment(name.split("-")[0] in IN_PROCESS))
    os.environ.update({CORE_VARIABLE: str(cores.engine), RECORDS_VARIABLE: str(records), "PYTHONPATH": _python_path()})
    started = time.monotonic()
    with open_arm(name, settings) as arm:
        say(answers, {"opened_s": time.monotonic() - started})
        for line in sys.stdin:
            order = Order(**json.loads(line))
            answer = carry_out(arm, order)
            say(answers, {"engines": read_records(records)} | asdict(answer))
    return 0


def open_arm(name: str, settings: ArmSettings) -> AbstractContextManager[Arm]:
    """The arm of a name; its libraries are imported here and not before, as each arm has others."""
    match name:
        case "ours":
            from benchmarks.generation.arms.ours import open_ours

            return open_ours(settings)
        case "llm" | "llm-chunks":
            from benchmarks.generation.arms.llm import ALL_AT_ONCE, CHUNK_ROWS, open_llm

            return open_llm(settings, CHUNK_ROWS if name == "llm-chunks" else ALL_AT_ONCE)
        case "http":
            from benchmarks.generation.arms.http import open_http

            return open_http(settings)
        case "ray-data-engine":
            from benchmarks.generation.arms.ray_data import open_engine

            return open_engine(settings)
        case "ray-data-serve":
            from benchmarks.generation.arms.ray_data import open_serve

            return open_serve(settings)
    raise ValueError(f"there is no arm {name!r}")


def carry_out(arm: Arm, order: Order) -> Answer:
    """Run the rows once. Raises `RuntimeError` when a row has not exactly the tokens that it should have."""
    rows = build_workload(Name(order.workload), order.num_rows, order.seed)
    if order.variant == "shuffled":
        rows = shuffled(rows, order.seed)
    if order.variant == "duplicates":
        rows = duplicated(rows)
    run = arm.prepare(rows, order.number, reorder=order.variant != "shuffled")
    begun = time.time()
    done = run()
    ended = time.time()
    check_tokens(rows, done)
    return Answer(begun, ended, [(row.at - begun, row.tokens) for row in done])


def check_tokens(rows: list[WorkItem], done: list[RowDone]) -> None:
    """Arms that make different numbers of tokens are not compared."""
    made = {row.index: row.tokens for row in done}
    if len(made) != len(done) or len(made) != len(rows):
        raise RuntimeError(f"{len(done)} rows came back, of {len(made)} indices, and {len(rows)} were asked for")
    for row in rows:
        if made[row.index] != row.num_tokens:
            raise RuntimeError(f"row {row.index} has {made[row.index]} tokens and should have {row.num_tokens}")


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
