"""From the plainest setting to the fastest, one change a rung, on one device, over a directory of packed tensors.

Needs torch, transformers and what `training` itself imports: no Ray. Every rung is a process of its own, so that its
peak memory is its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.training.shapes import SHAPES
from benchmarks.training.tensors import write_tensors
from benchmarks.training.workload import Workload

ROOT = Path(__file__).resolve().parent.parent.parent
WARM_UP_STEPS = 3  # compiling is in them
MEDIAN_PART = 16  # of a sequence, the median row
RUNG_S = 3600
QUICK = {"shape": "tiny", "sequence_length": 128, "batch_sequences": 2, "steps": 2}


@dataclass(frozen=True, slots=True)
class Rung:
    """What one rung switches on; each has one thing more than the one before it."""

    name: str
    is_packed: bool = True
    is_compiled: bool = True
    has_linear_loss: bool = True
    is_checkpointed: bool = True
    loss_kernel: str = "chunked"


LADDER = (
    Rung("eager, padded", is_packed=False, is_compiled=False, has_linear_loss=False),
    Rung("+ packed", is_compiled=False, has_linear_loss=False),
    Rung("+ compile", has_linear_loss=False),
    Rung("+ loss without logits"),
    Rung("+ no activation checkpointing", is_checkpointed=False),
)
LIGER = Rung("+ Liger's loss in place of ours", is_checkpointed=False, loss_kernel="liger")


@dataclass(frozen=True, slots=True)
class Climb:
    """What is the same on every rung."""

    tensors: str
    shape: str
    device: str
    dtype: str
    sequence_length: int
    steps: int


def run_ladder(options: argparse.Namespace) -> int:
    """Print a line for each rung; returns 2 when one failed."""
    if options.quick:
        vars(options).update(QUICK)
    shape = options.shape or "0.6b"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="ladder-") as scratch:
        tensors = options.tensors or _make_tensors(options, shape, Path(scratch))
        length = json.loads((tensors / "settings.json").read_text())["sequence_length"]
        climb = Climb(str(tensors), shape, options.device, options.dtype, length, options.steps)
        print(format_heading(climb), flush=True)
        for rung in choose_rungs(options.device):
            results[rung.name] = _run_rung(climb, rung)
            print(format_rung(rung, results[rung.name]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps({"climb": asdict(climb), "rungs": results}, indent=1))
    return 2 if any("error" in result for result in results.values()) else 0


def choose_rungs(device: str) -> tuple[Rung, ...]:
    """Return the ladder, with Liger's rung where its kernels run."""
    return (*LADDER, LIGER) if device == "cuda" and find_spec("liger_kernel") else LADDER


def _make_tensors(options: argparse.Namespace, shape: str, scratch: Path) -> Path:
    from benchmarks.training.workload import build_rows, write_rows

    num_steps = WARM_UP_STEPS + options.steps
    median = max(8, options.sequence_length // MEDIAN_PART)
    # Rows are about one and a half times their median in the mean, and the last packs of a plan are not full.
    num_rows = 64 + 2 * MEDIAN_PART * num_steps * options.batch_sequences
    workload = Workload(shape, options.sequence_length, options.batch_sequences, num_rows, median, num_steps)
    write_rows(build_rows(workload), scratch / "rows.parquet")
    write_tensors(workload, scratch / "rows.parquet", "none", scratch / "tensors")
    return scratch / "tensors"


def _run_rung(climb: Climb, rung: Rung) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training.rung", json.dumps([asdict(climb), asdict(rung)])]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUNG_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {RUNG_S} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def format_heading(climb: Climb) -> str:
    """Return what is measured and the columns."""
    shape = SHAPES[climb.shape]
    what = f"{climb.shape}, {shape.num_parameters():,} parameters, {climb.dtype}, {climb.sequence_length} tokens packed"
    columns = f"{'':<31} {'tokens/s':>10} {'loss tokens/s':>14} {'MFU':>7} {'peak GiB':>9} {'loss':>8}"
    return f"{what}, on {climb.device}\n{columns}"


def format_rung(rung: Rung, result: dict[str, Any]) -> str:
    """Return a rung's line; MFU is unknown where the device's peak is."""
    if "error" in result:
        return f"{rung.name:<31} {result['error']}"
    mfu = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
    return (
        f"{rung.name:<31} {result['tokens_per_s']:>10,.0f} {result['loss_tokens_per_s']:>14,.0f} {mfu:>7} "
        f"{result['peak_gib']:>9.2f} {result['loss']:>8.4f}"
    )
