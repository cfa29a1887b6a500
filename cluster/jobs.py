"""Jobs of this program on a running cluster: submitted, found by id or by the run's name, stopped, resumed.

Nothing is kept beside what Ray keeps of a job: its entry point and the metadata that `Metadata` writes.
"""

import os
import shlex
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cluster.run_dir import PROJECT_ROOT
from cluster.session import WORKING_DIR_EXCLUDES, auth_mode
from configs.errors import DeadlineExceeded, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.job_client import JobClient

ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
PREFIX = "stillhouse."
# Read by the process that Ray puts beside a job's driver: how long SIGTERM may take before it kills.
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
RAYS_STOP_WAIT_S = 3
STOP_MARGIN_S = 30.0  # for Ray to hear of the wish, and to write down what came of it
NO_AGENT = "No available agent"  # of a cluster whose head has just come up; Ray waits for one for 10 s
AGENT_S = 60.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a job says of itself: `Metadata("quickstart", "run", "configs/recipes/quickstart.yaml", "/mnt/runs/q")`."""

    run: str
    command: str
    recipe: str
    run_dir: str

    def to_ray(self) -> dict[str, str]:
        """As Ray keeps it."""
        return {PREFIX + key: value for key, value in asdict(self).items()}

    @classmethod
    def of(cls, job: "JobDetails") -> "Metadata | None":
        """None for a job of another program."""
        known = job.metadata or {}
        if PREFIX + "run" not in known:
            return None
        return cls(**{key: known.get(PREFIX + key, "") for key in cls.__slots__})


def connect(address: str) -> "JobClient":
    """Raises `UserError` when no cluster answers there."""
    os.environ.setdefault("RAY_AUTH_MODE", auth_mode())
    from cluster.job_client import JobClient  # imports Ray

    try:
        return JobClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address: {address} is no address of a Ray cluster's dashboard ({error})") from None


def start_job(client: "JobClient", entrypoint: str, metadata: Metadata, stop_wait_s: float) -> str:
    """Submit a command with this checkout as its working directory; returns the job's id.

    Raises:
        UserError: the cluster takes no such job, or has nobody yet who would start it.
    """
    options = {
        "entrypoint": entrypoint,
        "runtime_env": {
            "working_dir": str(PROJECT_ROOT),
            "excludes": WORKING_DIR_EXCLUDES,
            "env_vars": {STOP_WAIT: str(int(stop_wait_s))},
        },
        "metadata": metadata.to_ray(),
    }
    give_up_at = time.monotonic() + AGENT_S
    while True:
        try:
            return str(client.submit_job(submission_id=f"stillhouse-{metadata.run}-{uuid.uuid4().hex[:8]}", **options))
        except (RuntimeError, ValueError) as error:
            if NO_AGENT not in str(error) or time.monotonic() > give_up_at:
                raise UserError(f"--address: the cluster did not take the job ({error})") from None


def list_jobs(client: "JobClient") -> list["JobDetails"]:
    """This program's jobs, the latest last."""
    jobs = [job for job in client.list_jobs() if job.submission_id and Metadata.of(job)]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def is_over(job: "JobDetails") -> bool:
    """Whether its driver has ended."""
    return job.status.value in ENDED


def find_job(jobs: Sequence["JobDetails"], name: str) -> "JobDetails":
    """The job of that id, or the latest of the run of that name.

    Raises:
        UserError: there is none, or several of that name are under way.
    """
    for job in jobs:
        if job.submission_id == name:
            return job
    of_run = [job for job in jobs if job.metadata[PREFIX + "run"] == name]
    if not of_run:
        known = ", ".join(str(job.submission_id) for job in jobs[-5:])
        raise UserError(
            f"there is no job or run {name} on this cluster; "
            + (f"the latest jobs are {known}" if known else "it has had no job of stillhouse")
        )
    under_way = [job for job in of_run if not is_over(job)]
    if len(under_way) > 1:
        ids = ", ".join(str(job.submission_id) for job in under_way)
        raise UserError(f"{len(under_way)} jobs of runs with the name {name} are under way; say which by id: {ids}")
    return under_way[0] if under_way else of_run[-1]


def refuse_second(jobs: Sequence["JobDetails"], run_dir: str) -> None:
    """Raises `UserError` when a job is under way in that run directory."""
    for job in jobs:
        metadata = Metadata.of(job)
        if metadata is not None and metadata.run_dir == run_dir and not is_over(job):
            raise UserError(
                f"run_dir: job {job.submission_id} ({metadata.command}) is under way in {run_dir}; follow it with "
                f"`stillhouse jobs logs {job.submission_id}`, or end it with `stillhouse jobs stop`"
            )


def stop_job(client: "JobClient", job: "JobDetails") -> "JobDetails":
    """End a job as Ctrl-C would, and wait for its end; what it has committed stays.

    Raises:
        UserError: it has ended already.
        DeadlineExceeded: Ray does not end it.
    """
    job_id = str(job.submission_id)
    if is_over(job):
        raise UserError(f"job {job_id} is not under way: it ended as {job.status.value}")
    client.stop_job(job_id)
    return _wait_until_over(client, job_id, stop_wait_s(job) + STOP_MARGIN_S)


def resume_job(client: "JobClient", jobs: Sequence["JobDetails"], job: "JobDetails") -> str:
    """Submit a job's very own command again, with this checkout; returns the id of the new job.

    Raises:
        UserError: it is under way, another job is in its run directory, or its recipe is not in this checkout.
    """
    metadata = Metadata.of(job)
    assert metadata is not None, "list_jobs leaves out jobs of other programs"
    refuse_second(jobs, metadata.run_dir)
    if not (PROJECT_ROOT / metadata.recipe).is_file():
        raise UserError(f"job {job.submission_id} ran {metadata.recipe}, and there is no such recipe in {PROJECT_ROOT}")
    return start_job(client, job.entrypoint, metadata, stop_wait_s(job))


def message_of(job: "JobDetails") -> str:
    """What Ray says of it, in one line; of a driver that failed, its own last line."""
    lines = [line.strip() for line in (job.message or "").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["Ray says nothing of it"])[-1].removeprefix("error: ")


def stop_wait_s(job: "JobDetails") -> float:
    """How long its driver may take to end before Ray kills it."""
    variables = (job.runtime_env or {}).get("env_vars", {})
    return float(variables.get(STOP_WAIT, RAYS_STOP_WAIT_S))


def entrypoint_of(command: str, arguments: Sequence[str]) -> str:
    """The shell's words for a command of this program on a node."""
    return shlex.join(["python", "-m", "cluster", command, *arguments])


def _wait_until_over(client: "JobClient", job_id: str, deadline_s: float) -> "JobDetails":
    give_up_at = time.monotonic() + deadline_s
    while not is_over(job := client.get_job_info(job_id)):
        if time.monotonic() > give_up_at:
            raise DeadlineExceeded(f"job {job_id} had not ended after {deadline_s:.0f} s; Ray says {job.status.value}")
        time.sleep(POLL_S)
    return job
