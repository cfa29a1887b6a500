"""The command line of ``python -m benchmarks training``; standard library only, so that ``--help`` answers at once."""

import argparse
import os
from pathlib import Path

from benchmarks.training.shapes import SHAPES

ARMS = ("torchrun", "ray-train", "bare", "trl-packed", "trl-padded")
GROUPS = ("throughput", "curve", "resume", "elastic", "packing", "checkpoint", "memory")
EXAMPLES = """examples:
  python -m benchmarks training                                   all of the table, about 20 minutes on two cores
  python -m benchmarks training --quick                           a small version of everything, some minutes
  python -m benchmarks training --lines throughput --arms torchrun bare --pairs 12 --json training.json
  python -m benchmarks training --device cuda --shape 0.6b        the ladder on one GPU, without Ray
  python -m benchmarks training --device cuda --shape 8b --tensors packed/
"""


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Return the options; ``device`` is None for the comparisons and set for the ladder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks training",
        description="Our training against other ways to train the same model on the same rows, in turns.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, help="size of the student; 5m, and 0.6b for the ladder")
    parser.add_argument("--json", metavar="PATH", help="write everything measured to this file")
    parser.add_argument("--quick", action="store_true", help="tiny students and few runs: shows that it works")
    sides = parser.add_argument_group("side by side, on the CPU")
    sides.add_argument(
        "--lines", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="NAME", help=", ".join(GROUPS)
    )
    sides.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    sides.add_argument("--pairs", type=int, help="runs of each arm (default 10, and 4 of TRL's)")
    sides.add_argument("--seed", type=int, default=0, help="of the steps at which a run is killed")
    sides.add_argument("--cache", type=Path, default=default_cache(), help="where TRL's environment is kept")
    ladder = parser.add_argument_group("the ladder, on one device")
    ladder.add_argument("--device", choices=("cuda", "cpu"), help="climb the ladder there")
    ladder.add_argument("--tensors", type=Path, metavar="DIR", help="packed tensors to train on; made when not given")
    ladder.add_argument("--sequence-length", type=int, default=8192, help="tokens of a packed sequence that is made")
    ladder.add_argument("--batch-sequences", type=int, default=4, help="packed sequences of a step that is made")
    ladder.add_argument("--steps", type=int, default=10, help="measured steps of each rung")
    ladder.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the matrices")
    return parser.parse_args(arguments)


def default_cache() -> Path:
    """Where a user's programs keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stillhouse"
