"""Engine settings that all arms share, where each engine runs, and what it says of itself once it is there.

On a CPU vLLM binds OpenMP threads only in worker processes, and not every arm has one. So the worker class of this
benchmark binds whichever thread steps the model; once the arm has started, everything else of it gets the other cores.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.engine_settings import CPU_BLOCK_TOKENS

CORE_VARIABLE = "STILLHOUSE_BENCH_CORE"
RECORDS_VARIABLE = "STILLHOUSE_BENCH_RECORDS"
WORKER_CLASS = "benchmarks.generation.worker.BoundWorker"
KV_BLOCKS = 2560  # of 32 tokens: 160 prefixes of 512, fewer than the prefix workload has, and room for every other
BATCHED_TOKENS = 4096  # a whole prompt fits in one step: chunked prefill is off on CPUs, as in services.deployment
KV_GIB = 1  # what vLLM is told; KV_BLOCKS replaces it


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the engine, the rest for everything else of an arm."""

    engine: int
    others: frozenset[int]


def split_cores() -> Cores:
    """The first core that this process may use is the engine's."""
    engine, *others = sorted(os.sched_getaffinity(0))
    return Cores(engine, frozenset(others or [engine]))


def engine_kwargs(max_num_seqs: int, max_model_len: int) -> dict[str, Any]:
    """vLLM's engine arguments in every arm, without the model."""
    return {
        "dtype": "float32",
        "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": BATCHED_TOKENS,
        "block_size": CPU_BLOCK_TOKENS,
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "enable_prefix_caching": True,
        "num_gpu_blocks_override": KV_BLOCKS,
        "seed": 0,
        "worker_cls": WORKER_CLASS,
    }


def engine_environment(in_process: bool) -> dict[str, str]:
    """The environment of vLLM in every arm, as services.deployment sets it."""
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the worker class binds
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_process else "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def read_records(directory: Path) -> list[dict[str, Any]]:
    """Of each engine that was started so far, its ``thread`` (kernel's id) and its resolved ``configuration``."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


def find_difference(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """A phrase that names the first key in which two resolved configurations differ; None when they are equal."""
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            return f"{key} is {first.get(key)!r} and {second.get(key)!r}"
    return None
