"""What `stillhouse run` does around the teacher, as a process that can be killed: plan, stream the shards, seal.

`main` prints one JSON event a line. Running it again resumes.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from configs.errors import UserError
from configs.schema import AcceptanceConfig, GenerationConfig, SamplingConfig
from configs.table import COMPLETIONS_SCHEMA, RowStatus
from services.backlog import BacklogReporter
from services.client import ClientSpec, TableJob
from services.dataset import Seal, pending_shards, read_ledger, seal
from services.plan import extend_plan, read_plan
from services.prompts import Prompt, make_prompt
from services.table import open_or_create

if TYPE_CHECKING:
    from services.pipeline import Feed

# Key of the files' footer that names the directory of the faults. In an environment variable of the job it would forbid
# Ray to use the workers that it has started beforehand.
FAULTS = "chaos.faults"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STOPPED = 2  # exit status of a command that ends with a sentence, as the program's own


@dataclass(frozen=True, slots=True)
class DriverJob:
    """One run on a cluster that is there: ``prompts`` are plain strings, and every answer follows from them."""

    address: str
    app_name: str
    run_dir: str
    prompts: tuple[str, ...]
    samples: int = 1
    shard_rows: int = 8
    rows_per_call: int = 4
    window_rows: int = 16
    max_replicas: int = 1
    clients: int = 1
    max_tokens: int = 20
    max_attempts: int = 4
    request_deadline_s: float = 20.0
    no_progress_s: float = 120.0
    commit_deadline_s: float = 30.0
    fault_dir: str = ""
    tells_backlog: bool = False
    teachers: tuple[str, ...] = ()  # applications beside each other, in place of ``app_name``: prompts go round

    @property
    def prompts_uri(self) -> str:
        return f"{self.run_dir}/prompts"

    @property
    def completions_uri(self) -> str:
        return f"{self.run_dir}/completions"


def make_prompts(number: int) -> tuple[str, ...]:
    """Different prompts of a few characters: the number in letters, said a few times."""
    return tuple(_word(each) * (1 + each % 3) for each in range(number))


def plan(job: DriverJob) -> None:
    """Extend the plan and make sure that there is a table of completions."""
    extend_plan(
        job.prompts_uri,
        _prompts(job),
        samples_per_prompt=job.samples,
        shard_rows=job.shard_rows,
        commit_deadline_s=job.commit_deadline_s,
    )
    open_or_create(job.completions_uri, COMPLETIONS_SCHEMA, "completions")


def tasks(job: DriverJob) -> list[dict[str, Any]]:
    """The shards that are still to be made."""
    pending = pending_shards(job.prompts_uri, job.completions_uri)
    return [{"table": "completions", "shard": shard.shard, "path": shard.path} for shard in pending]


def client_spec(job: DriverJob) -> ClientSpec:
    """What a client needs to know of the job."""
    sampling = SamplingConfig(n=job.samples, max_tokens=job.max_tokens)
    table = TableJob(
        job.prompts_uri,
        job.completions_uri,
        sampling,
        AcceptanceConfig(),
        {"made.by": "chaos", FAULTS: job.fault_dir},
    )
    return ClientSpec(
        app_name=job.app_name,
        tables={"completions": table},
        tokenizer="",
        tokenizer_revision=None,
        chat_template_kwargs={},
        trust_remote_code=False,
        generation=GenerationConfig(
            shard_rows=job.shard_rows,
            clients=job.clients,
            window_rows=job.window_rows,
            rows_per_call=job.rows_per_call,
            max_attempts=job.max_attempts,
        ),
        window_rows=job.window_rows,
        request_deadline_s=job.request_deadline_s,
        shard_deadline_s=job.no_progress_s,
        commit_deadline_s=job.commit_deadline_s,
        max_replicas=job.max_replicas,
    )


def feeds(job: DriverJob, todo: list[dict[str, Any]]) -> "list[Feed]":
    """The shards to be made, by the teacher that makes them."""
    from services.pipeline import Feed

    if not job.teachers:
        return [Feed(client_spec(job), todo)]
    teachers = {file.shard: file.teacher for file in pending_shards(job.prompts_uri, job.completions_uri)}
    return [
        Feed(
            replace(client_spec(job), app_name=name, teacher=name),
            [task for task in todo if teachers[task["shard"]] == name],
        )
        for name in job.teachers
    ]


def run(job: DriverJob) -> Iterator[dict[str, Any]]:
    """All of the run; yields an event as each thing is done."""
    plan(job)
    todo = tasks(job)
    yield {"event": "planned", "pending": len(todo), "pid": os.getpid()}
    if todo:
        yield from _stream(job, todo)
    rows = read_plan(job.prompts_uri, job.samples).num_rows
    yield {"event": "ledger", **read_ledger(job.completions_uri, rows).to_dict()}
    sealed: Seal = seal(job.prompts_uri, job.completions_uri, job.samples)
    yield {"event": "sealed", "version": sealed.version, "ledger": sealed.ledger.to_dict()}


def main(job: DriverJob, events: str, errors: str) -> None:
    """The body of a process of its own: prints the events of the job to one file, and complaints to another."""
    for stream, path in ((sys.stdout, events), (sys.stderr, errors)):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    try:
        for event in run(job):
            _say(**event)
    except Exception as error:
        traceback.print_exc()
        _say(event="stopped", why=str(error))
        sys.exit(STOPPED if isinstance(error, UserError) else 1)


def _stream(job: DriverJob, todo: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    import ray  # costs a second, which a run that only has to be sealed need not spend
    from ray import serve

    import services.pipeline
    from tests.chaos.clients import ChaosClient, ChaosWriter

    ChaosWriter.faults = job.fault_dir
    vars(services.pipeline).update(ShardClient=ChaosClient, TableWriter=ChaosWriter)
    ray.init(job.address, log_to_driver=False, logging_level="ERROR")
    summaries = services.pipeline.stream_shards(feeds(job, todo), _report_silence)
    if not job.tells_backlog:
        yield from ({"event": "shard", **summary} for summary in summaries)
        return
    with BacklogReporter(serve.get_app_handle(job.app_name), len(job.prompts) * job.samples, None) as backlog:
        for summary in summaries:
            backlog.take_off(sum(summary[status] for status in RowStatus))
            yield {"event": "shard", **summary}


def _report_silence(silent_s: float, shards: int) -> None:
    _say(event="silence", silent_s=silent_s, shards=shards)


def _say(**event: Any) -> None:
    print(json.dumps(event | {"at": round(time.time(), 2)}), flush=True)


def _prompts(job: DriverJob) -> Iterator[Prompt]:
    for number, text in enumerate(job.prompts):
        teacher = job.teachers[number % len(job.teachers)] if job.teachers else None
        yield replace(make_prompt(text), teacher=teacher)


def _word(number: int) -> str:
    """A number in base 26, at least three letters."""
    word = ""
    while number or len(word) < 3:
        number, digit = divmod(number, len(LETTERS))
        word = LETTERS[digit] + word
    return word
