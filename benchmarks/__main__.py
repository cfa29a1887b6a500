"""``python -m benchmarks [NAME [OPTIONS]]``: one benchmark, or all of them with their defaults."""

import importlib
import pkgutil
import sys

import benchmarks


def main(arguments: list[str]) -> int:
    """Returns the exit status of the benchmark; the worst of all when no name is given."""
    names = sorted(each.name for each in pkgutil.iter_modules(benchmarks.__path__) if _is_benchmark(each.name))
    if not arguments:
        return max(_run(name, []) for name in names)
    if arguments[0] not in names:
        print(f"error: no benchmark {arguments[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    return _run(arguments[0], arguments[1:])


def _is_benchmark(name: str) -> bool:
    return name != "__main__" and hasattr(importlib.import_module(f"benchmarks.{name}"), "main")


def _run(name: str, arguments: list[str]) -> int:
    print(f"== {name}", flush=True)
    status: int = importlib.import_module(f"benchmarks.{name}").main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
