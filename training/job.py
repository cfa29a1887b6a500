"""What a training run is told and what it says back: plain data, importable without torch or Ray.

The driver builds a `TrainJob`, `training.loop.train` and `training.trainer.fit` run it and return a `TrainResult`.
All of it goes through JSON unchanged, so ``python -m training JOB.json`` runs the same job.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from configs.schema import TrainingConfig
from configs.terms.binding import Binding
from training.quarantine import Exclusions


class Transfer(StrEnum):
    """What a row hands to the student: the teacher's token ids, or its text tokenised anew."""

    TOKEN_IDS = "token_ids"
    TEXT = "text"


class JobDevice(StrEnum):
    """Where the job computes; the driver has resolved ``auto`` by now."""

    CPU = "cpu"
    GPU = "gpu"


# Keys of TrainingConfig that decide speed or bookkeeping and not what is learnt: a job may go on with other values.
OPERATIONAL_KEYS = frozenset(
    {
        "activation_checkpointing",
        "async_checkpoint",
        "attention",
        "check_rows",
        "checkpoint_every",
        "compile",
        "keep_checkpoints",
        "log_every",
        "loss_kernel",
        "max_failures",
        "micro_batch_sequences",
        "num_workers",
        "resize_check_every",
        "shard_size",
        "tensor_parallel_size",
        "threads_per_worker",
        "trackers",
    }
)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of completions; ``path`` is any fsspec URI, ``sha256`` its hex digest when it is known."""

    path: str
    num_rows: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Commits:
    """A table that a student learns from while it grows: the first ``num_files`` files of its log, in their order.

    ``table_id`` is the one of the log, so the table may be moved. A student that has caught up waits for the next file,
    at most ``deadline_s``.
    """

    table: str
    table_id: str
    num_files: int
    deadline_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One student to train; exactly one of ``model`` (weights to start from) and ``init`` (random weights) is set.

    ``files`` are sealed; with ``commits`` there are none, and the rows are those of a table that may still grow.
    ``binding`` is what ``model`` was decided on, checked where it is loaded.

    >>> job = TrainJob(name="student", files=(DataFile("rows.parquet", 512),), tokenizer="runs/a/tokenizer",
    ...                init={"model_type": "llama", "arguments": {"hidden_size": 64}}, output_dir="runs/a/student")
    >>> TrainJob.from_json(job.to_json()) == job
    True
    """

    name: str
    files: tuple[DataFile, ...]
    tokenizer: str
    output_dir: str
    transfer: Transfer = Transfer.TOKEN_IDS
    model: str | None = None
    revision: str | None = None
    init: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    device: JobDevice = JobDevice.CPU
    trust_remote_code: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    excluded: Exclusions = ()
    commits: Commits | None = None
    tokenizer_revision: str | None = None
    binding: Binding | None = None

    def to_json(self) -> str:
        """Return the job as one JSON object."""
        return json.dumps(asdict(self) | {"training": self.training.model_dump(mode="json")}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; unknown keys raise TypeError."""
        data = json.loads(text)
        data["files"] = tuple(DataFile(**file) for file in data["files"])
        data["excluded"] = tuple(data.get("excluded", ()))
        data["transfer"] = Transfer(data["transfer"])
        data["device"] = JobDevice(data["device"])
        data["commits"] = Commits(**data["commits"]) if data.get("commits") else None
        data["binding"] = Binding.from_dict(data["binding"]) if data.get("binding") else None
        data["training"] = TrainingConfig.model_validate(data["training"])
        return cls(**data)

    def identity(self) -> dict[str, Any]:
        """Return, under dotted keys, everything that decides what is learnt.

        A file counts by its digest where that is known, so a run directory may be moved; where the job runs and
        `OPERATIONAL_KEYS` do not count.
        """
        result: dict[str, Any] = {
            "files": [[file.sha256 or file.path, file.num_rows] for file in self.files],
            "tokenizer": self.tokenizer,
            "transfer": str(self.transfer),
            "model": self.model,
            "revision": self.revision,
            "init": self.init,
            "lora": self.lora,
            "template_kwargs": self.template_kwargs,
        }
        if self.commits is not None:
            result["commits"] = [self.commits.table_id, self.commits.num_files]
        if self.tokenizer_revision is not None and self.tokenizer != self.model:
            result["tokenizer_revision"] = self.tokenizer_revision
        if self.excluded:
            result["excluded"] = list(self.excluded)
        training = self.training.model_dump(mode="json")
        sections = {name: training.pop(name) for name in ("optimizer", "objective")}
        result |= {f"training.{key}": value for key, value in training.items() if key not in OPERATIONAL_KEYS}
        return result | {f"training.{name}.{key}": v for name, part in sections.items() for key, v in part.items()}

    def fingerprint(self) -> str:
        """Return the hex digest of `identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One line of ``metrics.jsonl``. Rates are over the steps since the line before, over all workers."""

    step: int
    """Optimiser steps done, from 1."""
    num_steps: int
    """Steps of the whole job."""
    epoch: int
    """Pass over the rows this step belongs to, from 0."""
    loss: float
    """Mean loss of this step's loss tokens: cross-entropy, or the blend of ``training.objective`` (nats)."""
    learning_rate: float
    """Rate this step was taken with."""
    grad_norm: float
    """Global gradient norm before clipping."""
    loss_tokens: int
    """Loss tokens since the start of the job."""
    tokens_per_s: float
    """Tokens of rows, prompt and completion without padding (tokens/s)."""
    loss_tokens_per_s: float
    """Tokens that bear a loss (tokens/s)."""
    seconds: float
    """Wall time of the steps since the line before."""
    data_wait_s: float
    """Part of ``seconds`` that this worker waited for its rows."""
    checkpoint_blocked_s: float
    """Part of ``seconds`` that the steps stood still for a checkpoint."""
    peak_memory_mib: float
    """Peak resident memory (CPU) or allocated memory (GPU) of this worker (MiB)."""
    time: float
    """When the line was written (seconds since 1970)."""
    mfu: float | None = None
    """Operations that the mathematics needs, as a part of what the devices can do; None where that is not known."""
    evaluation_loss: float | None = None
    """Mean cross-entropy of the held-back rows, where this step measured it (nats)."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished job says; kept as ``result.json`` in its output directory."""

    num_steps: int
    """Optimiser steps taken."""
    loss_tokens: int
    """Tokens that bore a loss, over all epochs."""
    final_loss: float
    """Loss of the last step (nats)."""
    evaluation_loss: float | None
    """Loss of the held-back rows after the last step; None when no row was held back (nats)."""
    rows: int
    """Rows of one epoch."""
    evaluation_rows: int
    """Rows held back."""
    overlong_dropped: int
    """Accepted rows left out because they are longer than ``training.sequence_length``."""
    packing_fill: float
    """Row tokens as a part of the packed sequences' room, in the last epoch."""
    seconds: float
    """Wall time of this process group from start to export; without the time before an interruption."""
    hf_dir: str
    """Directory of the Hugging Face checkpoint."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the fields from a JSON object that may hold more."""
        return cls(**{f.name: data[f.name] for f in fields(cls)})
