"""The student's path against other ways to train the same model: ``python -m benchmarks training --help``.

`driver` measures side by side on the CPU, `ladder` climbs from the plainest setting to the fastest on one device and
needs neither Ray nor psutil.
"""


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 when a goal is not met."""
    from benchmarks.training.options import parse_options  # only for those who run it

    options = parse_options(arguments)
    if options.device is not None:
        from benchmarks.training.ladder import run_ladder

        return run_ladder(options)
    from benchmarks.training.driver import run_benchmark

    return run_benchmark(options)
