"""Small configurations as a recipe's tree, for tests that change one key and look at what follows."""

import copy
from typing import Any

from configs.load import parse_run_config
from configs.schema import RunConfig

TREE: dict[str, Any] = {
    "name": "small",
    "teacher": {
        "make": {
            "addition": {"num_problems": 100},
            "model": {"model_type": "llama", "arguments": {"hidden_size": 32}},
            "training": {"max_steps": 10},
        }
    },
    "prompts": {"addition": {"num_problems": 10, "seed": 1}},
    "student": {"init": {"arguments": {"hidden_size": 16}}},
}

# A value other than the default for every operational key, or for one key of an operational section.
OPERATIONAL: dict[str, Any] = {
    "run_dir": "/elsewhere",
    "budget.max_usd": 10.0,
    "cluster.num_cpus": 7,
    "cluster.address": "auto",
    "deadlines.request": 5.0,
    "evaluation.batch_size": 3,
    "gateway.host": "::1",
    "generation.clients": 3,
    "generation.max_attempts": 9,
    "generation.reorder": False,
    "generation.rows_per_call": 5,
    "generation.window_rows": 5,
    "student.device": "cpu",
    "teacher.accelerator_type": "H100",
    "teacher.deadline": 3600.0,
    "teacher.engine.device": "cpu",
    "teacher.engine.enable_prefix_caching": False,
    "teacher.engine.gpu_memory_utilization": 0.5,
    "teacher.engine.kind": "async",
    "teacher.engine.kv_cache_gib": 2,
    "teacher.engine.max_num_seqs": 8,
    "teacher.engine.pipeline_parallel_size": 2,
    "teacher.engine.tensor_parallel_size": 2,
    "teacher.engine.threads": 2,
    "teacher.max_replicas": 4,
    "teacher.min_replicas": 2,
    "terms.student_name": "other",
    "training.activation_checkpointing": "full",
    "training.async_checkpoint": False,
    "training.attention": "sdpa",
    "training.check_rows": 0,
    "training.checkpoint_every": 7,
    "training.compile": True,
    "training.keep_checkpoints": 7,
    "training.log_every": 7,
    "training.loss_kernel": "chunked",
    "training.max_failures": 7,
    "training.micro_batch_sequences": 2,
    "training.num_workers": [1, 2],
    "training.resize_check_every": 7.0,
    "training.shard_size": 1,
    "training.tensor_parallel_size": 2,
    "training.threads_per_worker": 2,
    "training.trackers": [],
}


def put(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the tree with one dotted key set."""
    tree = copy.deepcopy(tree)
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[leaf] = value
    return tree


def make_config(**changed: Any) -> RunConfig:
    """The small configuration; ``section__key=value`` sets ``section.key``."""
    tree = TREE
    for key, value in changed.items():
        tree = put(tree, key.replace("__", "."), value)
    return parse_run_config(tree, "test")
