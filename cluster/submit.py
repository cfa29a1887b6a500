"""``stillhouse submit``: the same command as a Ray job, its log followed and its exit code passed on."""

import asyncio
import os
import shlex
import sys
import uuid
from pathlib import Path
from typing import Any

from cluster.run_dir import PROJECT_ROOT, RunDir
from cluster.session import WORKING_DIR_EXCLUDES, auth_mode
from configs.errors import UserError
from configs.schema import RunConfig

COMMANDS = ("run", "plan", "generate", "train", "evaluate", "export", "report")
FAULT = 1


def submit_job(
    config: RunConfig, command: str, recipe: Path, overrides: tuple[str, ...], *, address: str, follow: bool
) -> int:
    """Submit the command with this checkout as its working directory; returns the job's exit status.

    Without a ``run_dir`` the run lies where it would lie here, which the cluster's machines must share.

    Raises:
        UserError: no cluster answers at ``address``, or the command cannot be submitted.
    """
    if command not in COMMANDS:
        raise UserError(f"--command must be one of {', '.join(COMMANDS)}, not {command!r}")
    inside = _inside_project(recipe)
    # On the cluster the project is a copy in a temporary directory; a run must not be kept there.
    place = () if config.run_dir else (f"run_dir={RunDir.of(config).root}",)
    # Ray's own client prints its traceback when a cluster is not there.
    from ray.job_submission import JobSubmissionClient

    os.environ.setdefault("RAY_AUTH_MODE", auth_mode())
    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            submission_id=f"stillhouse-{config.name}-{uuid.uuid4().hex[:8]}",
            entrypoint=shlex.join(["python", "-m", "cluster", command, str(inside), *overrides, *place]),
            runtime_env={"working_dir": str(PROJECT_ROOT), "excludes": WORKING_DIR_EXCLUDES},
            metadata={"stillhouse.run": config.name, "stillhouse.command": command},
        )
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"--address: no Ray cluster took the job at {address} ({error})") from None
    print(f"submitted {job_id} to {address}", file=sys.stderr)
    return asyncio.run(_follow(client, job_id)) if follow else 0


def _inside_project(recipe: Path) -> Path:
    """The recipe as the job will find it: it travels with the working directory."""
    resolved = recipe.resolve()
    if PROJECT_ROOT not in resolved.parents:
        raise UserError(f"the recipe {recipe} must lie in {PROJECT_ROOT}, the directory that is sent to the cluster")
    return resolved.relative_to(PROJECT_ROOT)


async def _follow(client: Any, job_id: str) -> int:
    from ray.job_submission import JobStatus

    async for lines in client.tail_job_logs(job_id):
        print(lines, end="", flush=True)
    info = client.get_job_info(job_id)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"error: job {job_id} ended as {info.status.value}: {info.message}", file=sys.stderr)
    return info.driver_exit_code or FAULT
