"""Claims a job's output directory and tells whether its job is done.

``job.json`` is written first and says whose directory it is, ``result.json`` last.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from configs.errors import UserError
from training import storage
from training.job import DataFile, TrainJob, TrainResult

_LEARNT = "learnt.json"


def claim_output_dir(job: TrainJob) -> TrainResult | None:
    """Return the result when this very job is done; otherwise mark the directory as the job's and return None.

    UserError names the differing keys when the directory belongs to another job.
    """
    job_uri = storage.join(job.output_dir, "job.json")
    previous = storage.read_json(job_uri)
    if previous is None:
        storage.write_text(job_uri, job.to_json())
        return None
    found = TrainJob.from_json(json.dumps(previous))
    if found.fingerprint() != job.fingerprint():
        keys = ", ".join(sorted(_differing_keys(found.identity(), job.identity())))
        raise UserError(
            f"{job.output_dir} belongs to another training job, which differs in {keys}; "
            "take another output directory or go back to its values"
        )
    return load_result(job)


def load_result(job: TrainJob) -> TrainResult | None:
    """Return the result of ``job`` when it is done."""
    data = storage.read_json(storage.join(job.output_dir, "result.json"))
    if data is None or data["fingerprint"] != job.fingerprint():
        return None
    return TrainResult.from_dict(data)


def write_result(job: TrainJob, result: TrainResult) -> None:
    """Commit the job as done."""
    text = json.dumps(asdict(result) | {"fingerprint": job.fingerprint()}, indent=1)
    storage.write_text(storage.join(job.output_dir, "result.json"), text)


def write_learnt_files(job: TrainJob, files: Sequence[DataFile]) -> None:
    """Note what a job read of a table that grew, to be held against what was sealed in the end."""
    text = json.dumps([asdict(file) for file in files], indent=1)
    storage.write_text(storage.join(job.output_dir, _LEARNT), text)


def read_learnt_files(job: TrainJob) -> list[DataFile]:
    """Return what `write_learnt_files` noted, in the order of the commits; none for a job on sealed files."""
    return [DataFile(**each) for each in storage.read_json(storage.join(job.output_dir, _LEARNT)) or []]


def _differing_keys(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    return {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
