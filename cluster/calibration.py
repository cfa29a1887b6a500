"""What a recipe's phases were measured to take, kept beside the run directories so that all runs like it share it.

`cluster.calibrate` measures, `cluster.forecast` uses it. A phase takes what it takes once, however much it has to do
(processes that start, models that load, the checkpoint at the end), and then so much for each unit of its work.
"""

import hashlib
import json
import os
from typing import Any

from pydantic import Field

from cluster.run_dir import RunDir
from cluster.session import cluster_address
from configs.schema import RunConfig
from configs.section import Section

# Keys that decide how much there is to do, or what is learnt, and neither the speed nor the length of an answer.
_NOT_OF_SPEED = {
    "": ("name", "run_dir", "acceptance", "gateway", "terms", "budget", "deadlines"),
    "prompts": ("addition", "limit"),
    "training": ("max_steps", "epochs", "seed", "checkpoint_every", "evaluate_every", "max_failures"),
    "evaluation": ("addition", "limit", "verifier"),
    "student": ("control",),
    "cluster": ("address", "max_gpus", "prices"),
}
_NOT_OF_TEACHERS_SPEED = ("min_replicas", "max_replicas", "deadline")


class TeacherSpeed(Section):
    """Of one replica, and how long the rows of a teacher are on the mean."""

    tokens_per_s: float
    """Completion tokens while it has enough to do."""
    prompt_tokens: float
    completion_tokens: float
    device: str
    """``cpu`` or ``gpu``."""


class PhaseSpeed(Section):
    """Seconds of a phase: ``once_s`` in all, and ``unit_s`` for each step (of all workers) or problem."""

    once_s: float
    unit_s: float


class Calibration(Section):
    """Measured on the engine and the trainer themselves; what the recipe does not do is None."""

    measured_at: str
    """Day and time (UTC)."""
    make_teacher: PhaseSpeed | None = None
    generate_once_s: float
    """Until the first replicas can answer, and after the last row."""
    teachers: dict[str, TeacherSpeed] = Field(default_factory=dict)
    train: PhaseSpeed
    evaluate: PhaseSpeed | None = None
    """Problems of one student while another answers the same."""
    student_device: str
    """``cpu`` or ``gpu``."""


def load_calibration(config: RunConfig) -> Calibration | None:
    """What was measured for this recipe's shapes, devices and settings; None where nothing was."""
    saved = RunDir(RunDir.of(config).cache).read_text(_file_name(config))
    return None if saved is None else Calibration.model_validate_json(saved)


def save_calibration(config: RunConfig, measured: Calibration) -> None:
    """Keep it for `load_calibration`, of this recipe and all that differ from it in amounts alone."""
    RunDir(RunDir.of(config).cache).write_text(_file_name(config), measured.model_dump_json(indent=2) + "\n")


def calibration_key(config: RunConfig) -> str:
    """Hex digest of all that decides speed or the length of answers; on an embedded cluster, of the machine as well."""
    tree = config.model_dump(mode="json")
    for section, keys in _NOT_OF_SPEED.items():
        _forget(tree[section] if section else tree, keys)
    for teacher in [tree["teacher"], *tree["teachers"].values()]:
        _forget(teacher, _NOT_OF_TEACHERS_SPEED)
        if teacher is not None and teacher["make"] is not None:
            _forget(teacher["make"], ("addition", "min_accuracy"))
            _forget(teacher["make"]["training"], _NOT_OF_SPEED["training"])
    # A job on a cluster finds it under another address than whoever submits it.
    tree["machine"] = "a cluster" if cluster_address(config.cluster) else os.cpu_count()
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _forget(section: dict[str, Any] | None, keys: tuple[str, ...]) -> None:
    if section is not None:
        for key in keys:
            section.pop(key, None)


def _file_name(config: RunConfig) -> str:
    return f"calibration/{calibration_key(config)[:16]}.json"
