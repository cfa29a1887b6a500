"""What our part of a row costs: prompts to committed Parquet on a teacher that costs nothing.

``python -m benchmarks control_plane [--rows N] [--pairs N]`` prints rows a second, core-milliseconds a row (CPU time of
the whole process tree), and the ratio to asking the teacher for one row a call, without any table. The two are measured
in turns.
"""

import argparse
import asyncio
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import TreeCpu
from configs.schema import GenerationConfig, SamplingConfig
from services.acceptance import PlannedPrompt
from services.client import to_request
from services.template import PromptRenderer

HANDLE_WINDOW = 256  # calls in flight of the other arm; more of them make it no faster


@dataclass(frozen=True, slots=True)
class Arm:
    """One measurement."""

    rows_per_s: float
    core_ms_per_row: float


def main(arguments: list[str]) -> int:
    """Print one line a pair and the medians."""
    from benchmarks.run_echo import echo_cluster

    parser = argparse.ArgumentParser(prog="python -m benchmarks control_plane", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--handle-rows", type=int, default=2_000, help="rows of the arm of one call a row")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows-per-call", type=int, default=32)
    parser.add_argument("--clients", type=int, default=1)
    options = parser.parse_args(arguments)
    generation = GenerationConfig(
        shard_rows=512, window_rows=1024, rows_per_call=options.rows_per_call, clients=options.clients
    )
    pairs = []
    cpu = TreeCpu(os.getpid())
    with echo_cluster() as directory:
        for _ in range(options.pairs):
            ours = stream_rows(directory, options.rows, generation, cpu)
            theirs = ask_rows(directory, options.handle_rows, cpu)
            pairs.append((ours, theirs))
            print(
                f"stream {ours.rows_per_s:8,.0f} rows/s {ours.core_ms_per_row:.3f} core-ms/row   one call a row "
                f"{theirs.rows_per_s:8,.0f} rows/s {theirs.core_ms_per_row:.3f} core-ms/row   "
                f"{ours.rows_per_s / theirs.rows_per_s:.1f} times",
                flush=True,
            )
    cpu.stop()
    print(
        f"median: {statistics.median(ours.rows_per_s for ours, _ in pairs):,.0f} rows/s, "
        f"{statistics.median(ours.core_ms_per_row for ours, _ in pairs):.3f} core-ms a row, "
        f"{statistics.median(ours.rows_per_s / theirs.rows_per_s for ours, theirs in pairs):.1f} times one call a row"
    )
    return 0


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
