"""The teacher's path against other ways to run the same engine: ``python -m benchmarks generation --help``.

`driver` starts each arm as a process of its own (`arm`), runs them in turns on the same rows and compares pair by pair.
"""


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 when a goal is not met."""
    from benchmarks.generation.driver import run_benchmark  # only for those who run it

    return run_benchmark(arguments)
