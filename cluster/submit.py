"""``stillhouse submit``: the same command as a Ray job, its log followed and its exit code passed on."""

import sys
from pathlib import Path

from cluster.job_log import follow_job
from cluster.jobs import Metadata, connect, entrypoint_of, list_jobs, refuse_second, start_job
from cluster.run_dir import PROJECT_ROOT, RunDir
from configs.errors import UserError
from configs.schema import RunConfig

COMMANDS = ("run", "plan", "generate", "train", "evaluate", "export", "report")
WRITES_NOTHING = "plan"


def submit_job(
    config: RunConfig, command: str, recipe: Path, overrides: tuple[str, ...], *, address: str, follow: bool
) -> int:
    """Submit the command with this checkout as its working directory; returns the job's exit status.

    The run lies where it would lie here, which the cluster's machines must share.

    Raises:
        UserError: no cluster answers at ``address``, the command cannot be submitted, or a job is under way there.
    """
    if command not in COMMANDS:
        raise UserError(f"--command must be one of {', '.join(COMMANDS)}, not {command!r}")
    inside, run_dir = _inside_project(recipe), str(RunDir.of(config).root)
    client = connect(address)
    if command != WRITES_NOTHING:
        refuse_second(list_jobs(client), run_dir)
    # On the cluster the project is a copy in a temporary directory, where no run must be kept.
    entrypoint = entrypoint_of(command, [str(inside), *overrides, f"run_dir={run_dir}"])
    metadata = Metadata(config.name, command, str(inside), run_dir)
    job_id = start_job(client, entrypoint, metadata, config.deadlines.shutdown)
    print(f"submitted {job_id} to {address}", file=sys.stderr)
    return follow_job(client, job_id) if follow else 0


def _inside_project(recipe: Path) -> Path:
    """The recipe as the job will find it: it travels with the working directory."""
    resolved = recipe.resolve()
    if PROJECT_ROOT not in resolved.parents:
        raise UserError(f"the recipe {recipe} must lie in {PROJECT_ROOT}, the directory that is sent to the cluster")
    return resolved.relative_to(PROJECT_ROOT)
