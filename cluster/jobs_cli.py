"""``stillhouse jobs``: lists, shows, follows, stops and resumes what ``stillhouse submit`` began."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

DASHBOARD = "http://127.0.0.1:8265"
LOG_LINES = 5  # of a job's log that `status` shows: a line of progress comes every five seconds

Address = Annotated[str, Parameter(help="The cluster's dashboard address.")]
Name = Annotated[str, Parameter(help="Id of a job, or the name of a run, which means its latest job.")]
Follow = Annotated[bool, Parameter(help="Follow the job's log until it ends; with --no-follow only print its id.")]
Debug = Annotated[bool, Parameter(negative="", help="Show tracebacks.")]

jobs = App(name="jobs", help="Jobs on a cluster that `stillhouse submit` began: list, status, logs, stop, resume.")


@jobs.command(name="list")
def list_all(*, address: Address = DASHBOARD, debug: Debug = False) -> int:
    """List the cluster's jobs of this program, the latest last.

    Example: `stillhouse jobs list --address http://127.0.0.1:8265`
    """
    from cluster.jobs import connect, list_jobs

    for job in list_jobs(connect(address)):
        print(_in_a_line(job))
    return 0


@jobs.command
def status(name: Name, *, address: Address = DASHBOARD, debug: Debug = False) -> int:
    """Show a job: its state, its command, where its run lies, and the last lines of its log.

    Example: `stillhouse jobs status quickstart --address http://127.0.0.1:8265`
    """
    from cluster.jobs import connect, find_job, is_over, list_jobs, message_of

    client = connect(address)
    job = find_job(list_jobs(client), name)
    print(_in_a_line(job))
    print(f"command   {job.entrypoint}")
    if is_over(job):
        print(f"ended     {message_of(job)}")
    print("\n".join(client.get_job_logs(str(job.submission_id)).splitlines()[-LOG_LINES:]))
    return 0


@jobs.command
def logs(name: Name, *, address: Address = DASHBOARD, follow: Follow = True, debug: Debug = False) -> int:
    """Print a job's log and follow it until the job ends, with the job's exit status; Ctrl-C leaves the job alone.

    Example: `stillhouse jobs logs quickstart --no-follow`
    """
    from cluster.job_log import follow_job
    from cluster.jobs import connect, find_job, list_jobs

    client = connect(address)
    job_id = str(find_job(list_jobs(client), name).submission_id)
    if follow:
        return follow_job(client, job_id)
    print(client.get_job_logs(job_id), end="")
    return 0


@jobs.command
def stop(name: Name, *, address: Address = DASHBOARD, debug: Debug = False) -> int:
    """End a job as Ctrl-C would, and wait until it has ended; what it has committed stays, and it can be resumed.

    Example: `stillhouse jobs stop quickstart --address http://127.0.0.1:8265`
    """
    from cluster.jobs import connect, find_job, list_jobs, stop_job

    client = connect(address)
    job = stop_job(client, find_job(list_jobs(client), name))
    print(f"job {job.submission_id} ended as {job.status.value}; `stillhouse jobs resume {job.submission_id}` goes on")
    return 0


@jobs.command
def resume(name: Name, *, address: Address = DASHBOARD, follow: Follow = True, debug: Debug = False) -> int:
    """Submit a job's command again, word for word, with this checkout: the run goes on where it stopped.

    Example: `stillhouse jobs resume quickstart --address http://127.0.0.1:8265`
    """
    from cluster.job_log import follow_job
    from cluster.jobs import connect, find_job, list_jobs, resume_job

    client = connect(address)
    known = list_jobs(client)
    job_id = resume_job(client, known, find_job(known, name))
    print(f"submitted {job_id} to {address}", file=sys.stderr)
    return follow_job(client, job_id) if follow else 0


def _in_a_line(job: "JobDetails") -> str:
    """Such as ``stillhouse-quickstart-1f2e3d4c  RUNNING  run  /mnt/runs/quickstart  since 2026-11-24 22:10 (95 s)``."""
    from cluster.jobs import Metadata

    metadata = Metadata.of(job)
    assert metadata is not None, "list_jobs leaves out jobs of other programs"
    began = (job.start_time or 0) / 1000
    took = (job.end_time / 1000 if job.end_time else time.time()) - began
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
    place = metadata.run_dir
    return f"{job.submission_id}  {job.status.value}  {metadata.command}  {place}  since {since} ({took:.0f} s)"
