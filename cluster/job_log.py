"""A job's log, followed to the job's end, whatever becomes of the connection; `stillhouse submit` and `jobs logs`."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cluster.jobs import is_over, message_of
from configs.errors import DeadlineExceeded, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.job_client import JobClient

FAULT, INTERRUPTED = 1, 130
SILENCE_S = 15.0  # of a job's log, before its state is asked for
RECONNECT_S = 120.0  # without a word of a job: a dashboard that is started again takes half a minute
RECONNECT_EVERY_S = 1.0


def follow_job(client: "JobClient", job_id: str) -> int:
    """Print the job's log until it ends; returns its exit status. Ctrl-C leaves the job alone.

    Raises:
        DeadlineExceeded: the cluster is not to be reached any more; the job may go on.
    """
    try:
        job = asyncio.run(_JobLog(client, job_id).follow())
    except KeyboardInterrupt:
        print(f"job {job_id} goes on; `stillhouse jobs stop {job_id}` ends it", file=sys.stderr)
        return INTERRUPTED
    status = job.status.value
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        print(f"job {job_id} was stopped; `stillhouse jobs resume {job_id}` goes on", file=sys.stderr)
        return INTERRUPTED
    print(f"error: job {job_id} ended as {status}: {message_of(job)}", file=sys.stderr)
    return job.driver_exit_code or FAULT


class _JobLog:
    """A job's log as it is printed. A connection that breaks off says nothing of the job: it is made again."""

    def __init__(self, client: "JobClient", job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._printed = 0  # characters: a new connection begins with the log's first
        self._heard_at = time.monotonic()
        self._silence = ""

    async def follow(self) -> "JobDetails":
        """Print until the job has ended; returns how.

        Raises:
            DeadlineExceeded: the cluster neither sent of the log nor said how the job is for `RECONNECT_S`.
        """
        is_told = False
        while True:
            await self._print_stream()
            if (job := self._ask()) is not None and is_over(job):
                self._print_rest()
                return job
            if time.monotonic() - self._heard_at > RECONNECT_S:
                raise DeadlineExceeded(
                    f"the cluster has sent nothing of job {self._job_id} and has not said how it is for "
                    f"{RECONNECT_S:.0f} s ({self._silence}); the job may go on: when the cluster answers again, "
                    f"`stillhouse jobs logs {self._job_id}`"
                )
            if not is_told:
                is_told = True
                print(f"the log of job {self._job_id} broke off ({self._silence}); connecting again", file=sys.stderr)
            await asyncio.sleep(RECONNECT_EVERY_S)

    async def _print_stream(self) -> None:
        """Print what one connection brings that is new.

        Its end says little: the dashboard ends it in due form also when its own connection to the node broke off.
        """
        from aiohttp import ClientError  # which Ray's client has loaded

        pieces: AsyncIterator[str] = self._client.tail_job_logs(self._job_id)
        passed = 0
        piece = asyncio.ensure_future(anext(pieces, None))
        try:
            while True:
                done, _ = await asyncio.wait({piece}, timeout=SILENCE_S)
                if not done:
                    # A connection may not notice for hours that the cluster is gone.
                    if (job := self._ask()) is None or is_over(job):
                        return
                    continue
                if (text := piece.result()) is None:
                    self._silence = "the connection was closed"
                    return
                self._heard_at = time.monotonic()
                print(text[max(0, self._printed - passed) :], end="", flush=True)
                passed += len(text)
                self._printed = max(self._printed, passed)
                piece = asyncio.ensure_future(anext(pieces, None))
        except (RuntimeError, OSError, ClientError) as error:  # what Ray and aiohttp raise for a connection
            self._silence = str(error) or type(error).__name__
        finally:
            piece.cancel()

    def _ask(self) -> "JobDetails | None":
        """How the job is; None when the cluster does not say."""
        try:
            job = self._client.get_job_info(self._job_id)
        except (RuntimeError, UserError) as error:
            self._silence = str(error)
            return None
        self._heard_at = time.monotonic()
        return job

    def _print_rest(self) -> None:
        try:
            text = self._client.get_job_logs(self._job_id)
        except (RuntimeError, UserError) as error:  # the node with the log may have gone with the job
            print(f"the end of the log of job {self._job_id} is not to be had ({error})", file=sys.stderr)
            return
        print(text[self._printed :], end="", flush=True)
