"""The Ray Data actor that turns shards of prompts into stored shards of completions, which the pipeline commits.

It is a synchronous UDF with an event loop of its own on a thread: several shards are under way at once and share one
window of calls, so a shard's last rows never leave the teacher idle. One shard is one task and one file. It holds
the rows of `ClientSpec.shards_at_once` shards and no more.
"""

import asyncio
import gc
import hashlib
import json
import logging
import math
import threading
from collections import Counter
from concurrent.futures import wait
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from configs.errors import DeadlineExceeded, UserError
from configs.schema import ONLY_TEACHER, AcceptanceConfig, GenerationConfig, SamplingConfig
from configs.table import RowStatus
from services.acceptance import PlannedPrompt, Row, failed_rows, judge, rows_to_table
from services.completer import Completer
from services.generation import GenerateRequest, GenerateResult
from services.lineage import NO_LINEAGE, Lineage, add_template
from services.plan import read_shard
from services.requester import Requester
from services.table import write_file
from services.template import PromptRenderer, import_transformers_without_torch

# Windows of rows that are open at once. A shard stays open for its longest row, so what decodes is at most a share of
# the open rows: the mean length by the longest. With the 99th percentile at eight times the median, cut at sixteen, an
# engine of 256 places is 58 % full with one window, 90 % with four, 99 % with five, and never runs dry from six on.
OPEN_WINDOWS = 8
SHARDS_AT_ENDS = 2  # one of which the last rows are awaited, and one that enters the window
LOOK_EVERY_S = 3.0  # at the replicas that run: a new one waits so long for its rows

logger = logging.getLogger(__name__)

SUMMARY_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("shard", pa.int32()),
        ("accepted", pa.int64()),
        ("rejected", pa.int64()),
        ("failed", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("file", pa.string()),  # what the log has to say of the file: the fields of a `StoredFile`, as JSON
        ("error", pa.string()),  # why the run must stop; Ray would lose the kind of an exception on its way
    ]
)


@dataclass(frozen=True, slots=True)
class TableJob:
    """One table to fill: where its prompts lie, how they are answered and judged, what its rows and footers carry."""

    prompts_uri: str
    completions_uri: str
    sampling: SamplingConfig
    acceptance: AcceptanceConfig
    footer: dict[str, str]
    lineage: Lineage = NO_LINEAGE
    own_makers: frozenset[str] = frozenset()  # whose model the teacher may call itself


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """All that a client actor needs; plain data, sent to it once. ``tables`` are found by name in each task.

    ``window_rows`` may be in flight while ``max_replicas`` run, and a share of them while fewer do.
    """

    app_name: str
    tables: dict[str, TableJob]
    tokenizer: str
    tokenizer_revision: str | None
    chat_template_kwargs: dict[str, Any]
    trust_remote_code: bool
    generation: GenerationConfig
    window_rows: int
    request_deadline_s: float
    shard_deadline_s: float
    commit_deadline_s: float
    replica_start_s: float = 0.0  # the first shards wait for a replica as well
    max_replicas: int = 1
    teacher: str = ONLY_TEACHER
    node_labels: dict[str, str] = field(default_factory=dict)  # Ray's selector of the nodes that clients may take

    @property
    def shards_at_once(self) -> int:
        """Shards that a client works on, so that a window of rows decodes while the longest rows of others are awaited.

        It holds no more than their rows: eight windows and three shards.
        """
        return math.ceil(OPEN_WINDOWS * self.window_rows / self.generation.shard_rows) + SHARDS_AT_ENDS


class ShardClient:
    """Ray Data UDF: a block of ``(table, shard, path)`` in, a block of `SUMMARY_SCHEMA` out, one row a task."""

    def __init__(self, spec: ClientSpec) -> None:
        from ray import serve  # the actor's process has Ray; importing this module must not need it

        from services.replicas import window_share

        self._spec = spec
        if not spec.trust_remote_code:  # a repository's own code may want PyTorch
            import_transformers_without_torch()
        self._renderer = PromptRenderer.load(
            spec.tokenizer, spec.tokenizer_revision, spec.chat_template_kwargs, spec.trust_remote_code
        )
        self._tables = _with_template(spec.tables, self._renderer.fingerprint())
        handle = serve.get_app_handle(spec.app_name)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="teacher-requests", daemon=True).start()
        generation = spec.generation
        self._requester = Requester(
            handle.options(stream=True).generate,
            window_rows=window_share(spec.window_rows, 1, spec.max_replicas),
            deadline_s=spec.request_deadline_s,
            max_attempts=generation.max_attempts,
            hedge=spec.max_replicas > 1,
        )
        self._completer = Completer(self._requester, generation)
        if spec.max_replicas > 1:
            self._following = asyncio.run_coroutine_threadsafe(self._follow_replicas(), self._loop)
        gc.freeze()  # a million objects of the libraries, which each full collection would look at again

    def __call__(self, block: pa.Table) -> pa.Table:
        """Make and store each shard of the block."""
        summaries = []
        for task in block.to_pylist():
            try:
                summaries.append(self._make_shard(**task))
            except UserError as error:
                summaries.append({"table": task["table"], "shard": task["shard"], "error": str(error)})
        return pa.Table.from_pylist(summaries, schema=SUMMARY_SCHEMA)

    @property
    def window_rows(self) -> int:
        """Rows that may be with the teacher now."""
        return self._requester.window_rows

    async def _follow_replicas(self) -> None:
        """Keep the window at what the running replicas have work for."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        from services.replicas import running_replicas, window_share

        spec = self._spec
        while True:
            try:
                running = await asyncio.to_thread(running_replicas, spec.app_name)
            except (RayError, RayServeException) as error:  # the window stays as it is, and the next look may succeed
                logger.debug("the replicas of %s are not known: %s", spec.app_name, error)
            else:
                self._requester.resize(window_share(spec.window_rows, running, spec.max_replicas))
            await asyncio.sleep(LOOK_EVERY_S)

    def _make_shard(self, table: str, shard: int, path: str) -> dict[str, Any]:
        job = self._tables[table]
        rows = self._wait_for_rows(job, shard, path)
        deadline_s = self._spec.commit_deadline_s
        content = rows_to_table(rows, self._spec.teacher, job.lineage)
        action = write_file(job.completions_uri, content, shard, job.footer, deadline_s)
        counts = Counter(row.status for row in rows)
        return {
            "table": table,
            "shard": shard,
            **{status.value: counts[status] for status in RowStatus},
            "completion_tokens": sum(row.num_completion_tokens for row in rows),
            "file": json.dumps(asdict(action)),
        }

    def _wait_for_rows(self, job: TableJob, shard: int, path: str) -> list[Row]:
        prompts = read_shard(job.prompts_uri, path).to_pylist()
        work = asyncio.run_coroutine_threadsafe(self._complete_shard(job, prompts), self._loop)
        deadline_s = self._spec.shard_deadline_s + self._spec.replica_start_s
        began = self._loop.time()
        while (left_s := max(began, self._requester.heard_at) + deadline_s - self._loop.time()) > 0:
            wait([work], timeout=left_s)  # rows that came meanwhile are progress, whichever shard they belong to
            if work.done():
                return work.result()
        work.cancel()  # and with it the calls that the teacher still holds
        raise DeadlineExceeded(
            f"shard {shard} of {job.completions_uri} is not done, and no row came back for {deadline_s:.0f} s "
            f"(deadlines.no_progress): the teacher {self._spec.app_name} holds some of its {len(prompts)} prompts"
        )

    async def _complete_shard(self, job: TableJob, prompts: list[dict[str, Any]]) -> list[Row]:
        """The rows of a shard in the order of its prompts, whatever order their answers came in."""
        planned, failures = self._render(prompts)
        wanted = [each for each in planned if each.prompt_id not in failures]
        answers = await self._completer.complete([to_request(each, job.sampling) for each in wanted], job.sampling)
        return self._to_rows(job, planned, answers, failures)

    def _render(self, prompts: list[dict[str, Any]]) -> tuple[list[PlannedPrompt], dict[str, str]]:
        """The prompts with their tokens, and of those that have none the reason."""
        failures = {each["prompt_id"]: each["error"] for each in prompts if each["error"] is not None}
        good = [each for each in prompts if each["error"] is None]
        rendered = dict(
            zip(
                (each["prompt_id"] for each in good),
                self._renderer.render([json.loads(each["prompt"]) for each in good]),
                strict=True,
            )
        )
        planned = []
        for each in prompts:
            token_ids = rendered.get(each["prompt_id"], [])
            if isinstance(token_ids, ValueError):  # this prompt's fault: a role the template refuses, say
                failures[each["prompt_id"]] = f"template: {token_ids}"
                token_ids = []
            planned.append(PlannedPrompt(each["prompt_id"], each["shard"], each["prompt"], each["answer"], token_ids))
        return planned, failures

    def _to_rows(
        self,
        job: TableJob,
        planned: list[PlannedPrompt],
        answers: dict[str, GenerateResult],
        failures: dict[str, str],
    ) -> list[Row]:
        samples = [sample.token_ids for result in answers.values() for sample in result.samples]
        decoded = iter(self._renderer.decode(samples))
        completions = {key: [next(decoded) for _ in result.samples] for key, result in answers.items()}
        rows: list[Row] = []
        for each in planned:
            result = answers.get(each.prompt_id)
            error = failures.get(each.prompt_id) if result is None else result.error
            if result is None or error is not None:
                rows += failed_rows(each, job.sampling.n, error or "no result")
            else:
                texts = completions[each.prompt_id]
                rows += judge(each, result, texts, job.acceptance, job.sampling.truncation, job.own_makers)
        return rows


def _with_template(tables: dict[str, TableJob], template: str) -> dict[str, TableJob]:
    changed = {}
    for name, job in tables.items():
        lineage, footer = add_template(job.lineage, job.footer, template)
        changed[name] = replace(job, lineage=lineage, footer=footer)
    return changed


def to_request(prompt: PlannedPrompt, sampling: SamplingConfig) -> GenerateRequest:
    """The engine request of a prompt; its seed (31 bits) is a hash of the run's seed and the prompt's id."""
    digest = hashlib.sha256(f"{sampling.seed}:{prompt.prompt_id}".encode()).digest()
    return GenerateRequest(
        request_id=prompt.prompt_id,
        prompt_token_ids=prompt.token_ids,
        n=sampling.n,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=sampling.stop,
        seed=int.from_bytes(digest[:4]) % 2**31,
        top_logprobs=sampling.top_logprobs,
    )
