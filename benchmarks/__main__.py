"""``python -m benchmarks [NAME [OPTIONS]]``: one benchmark, or all of them with their defaults."""

import importlib
import pkgutil
import sys

import benchmarks


def main(arguments: list[str]) -> int:
    """Returns the exit status of the benchmark; the worst of all when no name is given."""
    modules = sorted(each.name for each in pkgutil.iter_modules(benchmarks.__path__))
    # Each needs other libraries, and a machine for one of them may not have those of all.
    if arguments and arguments[0] in modules and _is_benchmark(arguments[0]):
        return _run(arguments[0], arguments[1:])
    names = [name for name in modules if _is_benchmark(name)]
    if not arguments:
        return max(_run(name, []) for name in names)
    print(f"error: no benchmark {arguments[0]!r}; there are {', '.join(names)}", file=sys.stderr)
    return 2


def _is_benchmark(name: str) -> bool:
    return name != "__main__" and hasattr(importlib.import_module(f"benchmarks.{name}"), "main")


def _run(name: str, arguments: list[str]) -> int:
    print(f"== {name}", flush=True)
    status: int = importlib.import_module(f"benchmarks.{name}").main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
