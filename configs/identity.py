"""Which keys decide what a run makes: a run directory belongs to one set of their values."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from configs.schema import RunConfig

# Keys, or whole sections, that decide speed, place or bookkeeping only: a run may go on with other values.
OPERATIONAL_KEYS = frozenset(
    {
        "run_dir",
        "budget",
        "cluster",
        "deadlines",
        "evaluation.batch_size",
        "gateway",
        "generation.clients",
        "generation.max_attempts",
        "generation.reorder",
        "generation.rows_per_call",
        "generation.window_rows",
        "student.device",
        "teacher.accelerator_type",
        "teacher.deadline",
        "teacher.engine.device",
        "teacher.engine.enable_prefix_caching",
        "teacher.engine.gpu_memory_utilization",
        "teacher.engine.kind",
        "teacher.engine.kv_cache_gib",
        "teacher.engine.max_num_seqs",
        "teacher.engine.pipeline_parallel_size",
        "teacher.engine.tensor_parallel_size",
        "teacher.engine.threads",
        "teacher.max_replicas",
        "teacher.min_replicas",
        "terms",
        "training.activation_checkpointing",
        "training.async_checkpoint",
        "training.attention",
        "training.check_rows",
        "training.checkpoint_every",
        "training.compile",
        "training.keep_checkpoints",
        "training.log_every",
        "training.loss_kernel",
        "training.max_failures",
        "training.micro_batch_sequences",
        "training.num_workers",
        "training.resize_check_every",
        "training.shard_size",
        "training.tensor_parallel_size",
        "training.threads_per_worker",
        "training.trackers",
    }
)

# Sections that decide what the teacher writes; the rest decides what is done with it.
GENERATION_SECTIONS = ("teacher", "prompts", "sampling", "acceptance", "generation")


def identity(config: RunConfig) -> dict[str, Any]:
    """Everything that decides what a run makes, under dotted keys."""
    return dict(_leaves(config, ""))


def generation_fingerprint(config: RunConfig) -> str:
    """Hex digest of all that decides what an answer can be."""
    deciding = {key: value for key, value in identity(config).items() if key.startswith(GENERATION_SECTIONS)}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def differing_keys(first: RunConfig, second: RunConfig) -> list[str]:
    """Dotted keys in which two configurations would make different things."""
    one, other = identity(first), identity(second)
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def operational_key(key: str) -> str:
    """A dotted key as `OPERATIONAL_KEYS` has it: those of several teachers are those of one."""
    if key.startswith("teachers."):
        return "teacher." + key.split(".", 2)[2]
    return key.removeprefix("teacher.make.")


def _leaves(section: BaseModel, prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name in type(section).model_fields:
        key, value = prefix + name, getattr(section, name)
        if operational_key(key) in OPERATIONAL_KEYS:
            continue
        if isinstance(value, BaseModel):
            leaves += _leaves(value, f"{key}.")
        elif key == "teachers":
            for each, teacher in value.items():
                leaves += _leaves(teacher, f"teachers.{each}.")
        else:
            leaves.append((key, json.loads(json.dumps(value, default=str))))
    return leaves
