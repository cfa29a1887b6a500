"""Runs the comparisons: both arms of one live side by side and run in turns on the same rows.

Which arm goes first alternates, so drift of the machine touches both. One engine of each arm serves all of the arm's
comparisons; an engine that uses CPU time without work, or is configured otherwise than ours, ends the benchmark.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, groupby
from pathlib import Path
from typing import Any

from benchmarks.generation.arm import Order
from benchmarks.generation.arms import START_S, ArmSettings
from benchmarks.generation.child import ArmProcess
from benchmarks.generation.comparisons import COMPARISONS, Comparison
from benchmarks.generation.engine import engine_kwargs, find_difference, split_cores
from benchmarks.generation.models import CONTEXT_TOKENS, SHAPES, make_model
from benchmarks.generation.table import Outcome, Sample, format_table
from benchmarks.generation.workloads import Name
from benchmarks.processes import ArmFailed
from cluster.phases.generate import WINDOW_SLACK
from cluster.signals import interrupt_on_sigterm

# A long run is of more shards than are open at once, so that a barrier at their ends would show.
ROWS = {Name.FIXED: 640, Name.LONG_TAIL: 768, Name.LONG_RUN: 4096, Name.PREFIX: 1536, Name.N4: 1024}
PAIRS, LONG_PAIRS = 7, 3  # a long run takes a minute or two
DEFAULT_MODELS = ("4m", "27m")
WARM_UP_ROWS = 160
WARM_UP_SEED = 10**6  # no pair's
IDLE_S = 3.0
IDLE_CORES = 0.35  # Ray's own processes and its data executor use some; an engine that spins uses most of a core
SETTLE_S = 1.0
EXAMPLES = """examples:
  python -m benchmarks generation                                       all of the table; an hour for 4m, three for both
  python -m benchmarks generation --model 4m --workload fixed --arms llm http --pairs 3
  python -m benchmarks generation --model 27m --json generation.json
  python -m benchmarks generation --generation rows_per_call=16 shard_rows=256 --arms llm
"""


def run_benchmark(arguments: list[str]) -> int:
    """Returns 1 when a goal is not met, 2 when arms could not be compared."""
    options = _parse(arguments)
    chosen = [
        each
        for each in COMPARISONS
        if each.arm in options.arms and each.workload in options.workload and any(map(each.is_of, options.model))
    ]
    if not chosen:
        print("error: no comparison has these arms, workloads and models; --help lists them", file=sys.stderr)
        return 2
    interrupt_on_sigterm()  # so that the arms end with this process
    benches: list[Bench] = []
    directory = Path(tempfile.mkdtemp(prefix="gen-", dir="/tmp"))
    try:
        for model in options.model:
            if comparisons := [each for each in chosen if each.is_of(model)]:
                benches.append(Bench(model, directory, make_model(model, directory), options))
                benches[-1].measure(comparisons)
    except ArmFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if options.json:
            Path(options.json).write_text(json.dumps({each.model: each.to_dict() for each in benches}, indent=1))
    for bench in benches:
        bench.print_table()
    if any(bench.failures for bench in benches):
        return 2
    return int(not all(outcome.is_met for bench in benches for outcome in bench.outcomes))


class Bench:
    """The comparisons of one model. ``engines`` is what each arm said of its engine and of its start."""

    def __init__(self, model: str, directory: Path, path: str, options: argparse.Namespace) -> None:
        self.model = model
        self.outcomes: list[Outcome] = []
        self.failures: list[str] = []
        self.engines: dict[str, dict[str, Any]] = {}
        self._directory = directory
        self._path = path
        self._options = options
        self._cores = split_cores()
        self._numbers = count()

    def measure(self, comparisons: Sequence[Comparison]) -> None:
        """Ours lives all the time, the others one after the other; one that fails is reported, and the next begins."""
        os.sched_setaffinity(0, self._cores.others)  # the engines' core is theirs alone
        try:
            with self._open("ours") as ours:
                for process, group in groupby(comparisons, lambda each: each.process):
                    try:
                        self._measure_group(list(group), process, ours)
                    except ArmFailed as error:
                        print(f"error: {error}", file=sys.stderr, flush=True)
                        self.failures.append(str(error).splitlines()[0])
        finally:
            os.sched_setaffinity(0, {self._cores.engine, *self._cores.others})

    def print_table(self) -> None:
        """The table, what all engines have in common, and what could not be measured."""
        pairs = sorted({len(each.ours) for each in self.outcomes})
        print(f"\nmodel {self.model}, medians of {' or '.join(map(str, pairs))} pairs, ours / arm")
        print(format_table(self.outcomes))
        starts = ", ".join(f"{name} {each['start_s']:.0f} s" for name, each in self.engines.items())
        print(f"from start to the first row: {starts}")
        engine = self.engines["ours"]["engine"]
        print("every engine: " + ", ".join(f"{key} {engine[key]}" for key in engine if key != "model"))
        for failure in self.failures:
            print(f"not measured: {failure}")

    def to_dict(self) -> dict[str, Any]:
        outcomes = [each.to_dict() for each in self.outcomes]
        return {"engines": self.engines, "failures": self.failures, "outcomes": outcomes}

    def _measure_group(self, group: list[Comparison], process: str, ours: ArmProcess) -> None:
        if process == "ours":
            self.outcomes += (self._compare(each, ours, ours) for each in group)
            return
        with self._open(process) as theirs:
            self._require_equal(process)
            self.outcomes += (self._compare(each, ours, theirs) for each in group)

    @contextmanager
    def _open(self, name: str) -> Iterator[ArmProcess]:
        directory = Path(tempfile.mkdtemp(dir=self._directory))
        settings = ArmSettings(
            model=self._path,
            engine=engine_kwargs(self._options.max_num_seqs, CONTEXT_TOKENS),
            directory=directory,
            window_rows=round(WINDOW_SLACK * self._options.max_num_seqs),
            generation=self._options.generation,
        )
        arm = ArmProcess(name, settings, self._cores)
        try:
            arm.wait_until_open()
            answer = arm.run(Order(Name.FIXED, 1, WARM_UP_SEED, next(self._numbers)), START_S)
            start_s = arm.seconds_since_start()
            arm.confine(self._cores.others, {each["thread"] for each in answer["engines"]})
            arm.run(Order(Name.FIXED, WARM_UP_ROWS, WARM_UP_SEED + 1, next(self._numbers)))
            self._note_engine(name, answer["engines"], start_s, _idle_cores(arm))
            yield arm
        finally:
            arm.stop()

    def _note_engine(self, name: str, engines: list[dict[str, Any]], start_s: float, idle_cores: float) -> None:
        print(f"{self.model} {name}: first row after {start_s:.1f} s, {idle_cores:.2f} cores when idle", flush=True)
        if len(engines) != 1:
            raise ArmFailed(f"{name} started {len(engines)} engines; one is compared with one")
        if idle_cores > IDLE_CORES:
            raise ArmFailed(f"{name} uses {idle_cores:.2f} cores without work, which disturbs the arm beside it")
        self.engines[name] = {"start_s": start_s, "idle_cores": idle_cores, "engine": engines[0]["configuration"]}

    def _require_equal(self, name: str) -> None:
        difference = find_difference(self.engines["ours"]["engine"], self.engines[name]["engine"])
        if difference is not None:
            raise ArmFailed(f"ours and {name} are not configured alike: {difference}")

    def _compare(self, comparison: Comparison, ours: ArmProcess, theirs: ArmProcess) -> Outcome:
        samples: dict[bool, list[Sample]] = {True: [], False: []}
        pairs = LONG_PAIRS if comparison.workload is Name.LONG_RUN else PAIRS
        for pair in range(self._options.pairs or pairs):
            for is_ours in (True, False) if pair % 2 == 0 else (False, True):
                arm, variant = (ours, "plain") if is_ours else (theirs, comparison.variant)
                num_rows = self._options.rows or ROWS[comparison.workload]
                time.sleep(SETTLE_S)  # what the run before has to tidy up is not this one's
                seed = comparison.seed(pair, is_ours=is_ours)
                answer = arm.run(Order(comparison.workload, num_rows, seed, next(self._numbers), variant))
                samples[is_ours].append(Sample.from_answer(answer))
            one, other = samples[True][-1], samples[False][-1]
            if one.tokens != other.tokens:
                raise ArmFailed(f"ours made {one.tokens} tokens and {comparison.arm} {other.tokens} of the same rows")
            _print_pair(comparison, pair, one, other)
        return Outcome(self.model, comparison, samples[True], samples[False])


def _idle_cores(arm: ArmProcess) -> float:
    time.sleep(SETTLE_S)
    before, started = arm.cpu_s(), time.monotonic()
    time.sleep(IDLE_S)
    return (arm.cpu_s() - before) / (time.monotonic() - started)


def _print_pair(comparison: Comparison, pair: int, ours: Sample, theirs: Sample) -> None:
    sides = "   ".join(
        f"{name}: {each.phases.steady_tokens_per_s:,.0f} tokens/s steady, {each.tokens_per_s:,.0f} in "
        f"{each.seconds:.1f} s (ramp {each.phases.ramp_s:.1f}, tail {each.phases.tail_s:.1f}), {each.cpu_s:.1f} CPU-s"
        for name, each in (("ours", ours), (comparison.arm, theirs))
    )
    print(f"  {comparison.workload} {pair}: {sides}", flush=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    arms = list(dict.fromkeys(each.arm for each in COMPARISONS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks generation",
        description="Our path against other ways to run the same engine on the same rows, in turns.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(DEFAULT_MODELS), help="sizes of the model")
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms, metavar="ARM", help=", ".join(arms))
    parser.add_argument(
        "--workload", nargs="+", type=Name, choices=list(Name), default=list(Name), metavar="NAME", help=", ".join(Name)
    )
    parser.add_argument(
        "--pairs", type=int, help=f"runs of each arm in a comparison; {PAIRS}, or {LONG_PAIRS} of a long run"
    )
    parser.add_argument("--rows", type=int, help=f"rows of a run; {', '.join(f'{k} {v}' for k, v in ROWS.items())}")
    parser.add_argument("--max-num-seqs", type=int, default=128, help="rows the engine decodes at a time")
    parser.add_argument(
        "--generation",
        nargs="+",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help="keys of the recipe's generation section, for ours",
    )
    parser.add_argument("--json", metavar="PATH", help="write all samples to this file")
    options = parser.parse_args(arguments)
    options.generation = dict(options.generation)
    return options


def _setting(text: str) -> tuple[str, int]:
    key, _, value = text.partition("=")
    return key, int(value)
