"""How the memory of the driver and of a client grows with the data: ``python -m benchmarks memory [--rows N ...]``.

Each size has a process of its own, which makes a small run first: growth is counted from what that left. A run is made
and then resumed with a thousand more prompts. The figures are peaks of resident memory, sampled; Ray's object store is
not part of them.
"""

import argparse
import json
import threading
from contextlib import suppress

import psutil

from benchmarks.processes import measure_in_child

SIZES = (1_000, 10_000, 100_000)
WARM_UP_ROWS = 1_000
BOUND_MIB = 64.0
SAMPLE_S = 0.05
LONGEST_S = 3600


def main(arguments: list[str]) -> int:
    """Print a table; returns 1 when the driver grew by more than the bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES), help="sizes, such as 1000000")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(measure(options.child)))
        return 0
    print(f"{'rows':>9} {'driver':>12} {'grown':>9} {'client':>12} {'grown':>9} {'seconds':>8}")
    grown = []
    for rows in options.rows:
        found = measure_in_child("memory", str(rows), LONGEST_S)
        grown.append(found["driver_mib"] - found["driver_before_mib"])
        client_grown = found["client_mib"] - found["client_before_mib"]
        print(
            f"{rows:>9,} {found['driver_mib']:>8.1f} MiB {grown[-1]:>+5.1f} MiB {found['client_mib']:>8.1f} MiB "
            f"{client_grown:>+5.1f} MiB {found['seconds']:>8.1f}",
            flush=True,
        )
    worst = max(grown)
    print(f"the driver grows by at most {worst:.1f} MiB; bound {BOUND_MIB:.0f} MiB")
    return int(worst > BOUND_MIB)


def measure(num_rows: int) -> dict[str, float]:
    """Peaks of one size, in this process."""
    from benchmarks.run_echo import echo_cluster, run_rows
    from configs.schema import GenerationConfig

    generation = GenerationConfig(shard_rows=512, window_rows=512)
    with echo_cluster() as directory:
        with Peaks() as small:
            run_rows(directory, WARM_UP_ROWS, generation)
        before = psutil.Process().memory_info().rss / 2**20
        with Peaks() as peaks:
            timing = run_rows(directory, num_rows, generation, name="run")
            # The same command once more, with some more prompts: what is there is found, the new rows are made.
            run_rows(directory, num_rows + WARM_UP_ROWS, generation, name="run")
    return {
        "driver_before_mib": before,
        "driver_mib": peaks.driver_mib,
        "client_before_mib": small.client_mib,
        "client_mib": peaks.client_mib,
        "seconds": timing.plan_s + timing.stream_s + timing.seal_s,
    }


class Peaks:
    """Samples the resident memory of this process and of its largest client actor while the block runs."""

    def __enter__(self) -> "Peaks":
        self.driver_mib = self.client_mib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        process, clients, looks = psutil.Process(), [], 0
        while not self._done.wait(SAMPLE_S):
            self.driver_mib = max(self.driver_mib, process.memory_info().rss / 2**20)
            if looks % 20 == 0:  # looking for the actors costs more than a sample
                clients = _clients(process)
            looks += 1
            for client in clients:
                with suppress(psutil.Error):
                    self.client_mib = max(self.client_mib, client.memory_info().rss / 2**20)


def _clients(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            if any("MapWorker" in word for word in child.cmdline()):
                found.append(child)
    return found
