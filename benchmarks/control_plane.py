"""What our part of a row costs: prompts to committed Parquet on a teacher that costs nothing.

``python -m benchmarks control_plane [--rows N] [--pairs N]`` prints rows a second, core-milliseconds a row (CPU time of
the whole process tree), and the ratio to asking the teacher for one row a call, without any table. The two are measured
in turns, and a goal is met when the bound of the median's interval that is the worse one reaches it.
"""

import argparse
import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import TreeCpu
from benchmarks.statistics import median_interval, paired_ratio
from configs.schema import GenerationConfig, SamplingConfig
from services.acceptance import PlannedPrompt
from services.client import to_request
from services.template import PromptRenderer

HANDLE_WINDOW = 256  # calls in flight of the other arm; more of them make it no faster
ROWS_PER_S, CORE_MS_PER_ROW, TIMES_ONE_A_CALL = 10_000, 0.1, 10  # the goals, at 32 rows a call on two cores


@dataclass(frozen=True, slots=True)
class Arm:
    """One measurement."""

    rows_per_s: float
    core_ms_per_row: float


def main(arguments: list[str]) -> int:
    """Print one line a pair, and the medians; returns 1 when a goal is not met."""
    from benchmarks.run_echo import echo_cluster

    parser = argparse.ArgumentParser(prog="python -m benchmarks control_plane", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--handle-rows", type=int, default=2_000, help="rows of the arm of one call a row")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rows-per-call", type=int, default=32)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--json", metavar="PATH", help="write all pairs to this file")
    options = parser.parse_args(arguments)
    generation = GenerationConfig(
        shard_rows=512, window_rows=1024, rows_per_call=options.rows_per_call, clients=options.clients
    )
    ours: list[Arm] = []
    theirs: list[Arm] = []
    cpu = TreeCpu(os.getpid())
    with echo_cluster() as directory:
        for _ in range(options.pairs):
            ours.append(stream_rows(directory, options.rows, generation, cpu))
            theirs.append(ask_rows(directory, options.handle_rows, cpu))
            print(
                f"stream {ours[-1].rows_per_s:8,.0f} rows/s {ours[-1].core_ms_per_row:.3f} core-ms/row   "
                f"one call a row {theirs[-1].rows_per_s:8,.0f} rows/s {theirs[-1].core_ms_per_row:.3f} core-ms/row",
                flush=True,
            )
    cpu.stop()
    if options.json:
        arms = {"stream": ours, "one_call_a_row": theirs}
        Path(options.json).write_text(
            json.dumps({name: [asdict(each) for each in arms[name]] for name in arms}, indent=1)
        )
    return int(not _print_medians(ours, theirs))


def _print_medians(ours: list[Arm], theirs: list[Arm]) -> bool:
    """Whether all goals are met."""
    rate = median_interval([each.rows_per_s for each in ours])
    cost = median_interval([each.core_ms_per_row for each in ours])
    times = paired_ratio([each.rows_per_s for each in ours], [each.rows_per_s for each in theirs])
    print(f"medians of {len(ours)} pairs, with 95 % intervals")
    goals = []
    for name, found, is_met, goal, form in (
        ("rows/s", rate, rate.low >= ROWS_PER_S, f"≥ {ROWS_PER_S:,}", ",.0f"),
        ("core-ms a row", cost, cost.high <= CORE_MS_PER_ROW, f"≤ {CORE_MS_PER_ROW}", ".3f"),
        ("times one call a row", times, times.low >= TIMES_ONE_A_CALL, f"≥ {TIMES_ONE_A_CALL}", ".1f"),
    ):
        interval = f"{found.median:{form}} [{found.low:{form}}, {found.high:{form}}]"
        print(f"{name:<21} {interval:<28} {goal} {'met' if is_met else 'NOT MET'}")
        goals.append(is_met)
    return all(goals)


def stream_rows(directory: Path, num_rows: int, generation: GenerationConfig, cpu: TreeCpu) -> Arm:
    """From the first committed shard to the last: the start of the client actors is not part of it."""
    from benchmarks.run_echo import run_rows

    moments: list[tuple[float, float]] = []
    run_rows(directory, num_rows, generation, lambda: moments.append((time.monotonic(), cpu.total())))
    (begun, cpu_before), (ended, cpu_after) = moments[0], moments[-1]
    rows = num_rows - generation.shard_rows
    return Arm(rows / (ended - begun), 1000 * (cpu_after - cpu_before) / rows)


def ask_rows(directory: Path, num_rows: int, cpu: TreeCpu) -> Arm:
    """The same prompts, each in a call of its own through a deployment handle."""
    from ray import serve

    from benchmarks.run_echo import APP_NAME, make_prompts

    renderer = PromptRenderer.load(str(directory / "tokenizer"), None, {}, False)
    handle, sampling = serve.get_app_handle(APP_NAME).options(stream=True), SamplingConfig(max_tokens=32)

    async def ask(prompt: Any, window: asyncio.Semaphore) -> None:
        [token_ids] = renderer.render([prompt.prompt])
        assert not isinstance(token_ids, ValueError)
        planned = PlannedPrompt(prompt.prompt_id, 0, prompt.prompt, None, token_ids)
        async with window:
            async for [result] in handle.generate.remote([to_request(planned, sampling)]):
                renderer.decode([result.samples[0].token_ids])

    async def ask_all() -> None:
        window = asyncio.Semaphore(HANDLE_WINDOW)
        await asyncio.gather(*(ask(prompt, window) for prompt in make_prompts(num_rows)))

    before, started = cpu.total(), time.monotonic()
    asyncio.run(ask_all())
    return Arm(num_rows / (time.monotonic() - started), 1000 * (cpu.total() - before) / num_rows)
