"""The Ray Data actor that turns shards of prompts into stored shards of completions, which the pipeline commits.

It is a synchronous UDF with an event loop of its own on a thread: several shards are under way at once and share one
window of calls, so a shard's last rows never leave the teacher idle. One shard is one task and one file.
"""

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from configs.errors import DeadlineExceeded, UserError
from configs.schema import AcceptanceConfig, GenerationConfig, SamplingConfig, TruncationPolicy
from configs.table import RowStatus
from services.acceptance import PlannedPrompt, Row, failed_rows, judge, rows_to_table
from services.generation import GenerateRequest, GenerateResult
from services.plan import read_shard
from services.requester import Requester
from services.table import write_file
from services.template import PromptRenderer

SUMMARY_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("shard", pa.int32()),
        ("accepted", pa.int64()),
        ("rejected", pa.int64()),
        ("failed", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("file", pa.string()),  # what the log has to say of the file: the fields of an `AddAction`, as JSON
        ("error", pa.string()),  # why the run must stop; Ray would lose the kind of an exception on its way
    ]
)


@dataclass(frozen=True, slots=True)
class TableJob:
    """One table to fill: where its prompts lie, how they are answered and judged, what each file's footer says."""

    prompts_uri: str
    completions_uri: str
    sampling: SamplingConfig
    acceptance: AcceptanceConfig
    footer: dict[str, str]


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """All that a client actor needs; plain data, sent to it once. ``tables`` are found by name in each task."""

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


class ShardClient:
    """Ray Data UDF: a block of ``(table, shard, path)`` in, a block of `SUMMARY_SCHEMA` out, one row a task."""

    def __init__(self, spec: ClientSpec) -> None:
        from ray import serve  # the actor's process has Ray; importing this module must not need it

        self._spec = spec
        self._renderer = PromptRenderer.load(
            spec.tokenizer, spec.tokenizer_revision, spec.chat_template_kwargs, spec.trust_remote_code
        )
        handle = serve.get_app_handle(spec.app_name)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="teacher-requests", daemon=True).start()
        generation = spec.generation
        self._requester = Requester(
            handle.generate,
            window_calls=max(1, spec.window_rows // generation.rows_per_call),
            deadline_s=spec.request_deadline_s,
            max_attempts=generation.max_attempts,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Make and store each shard of the block."""
        summaries = []
        for task in block.to_pylist():
            try:
                summaries.append(self._make_shard(**task))
            except UserError as error:
                summaries.append({"table": task["table"], "shard": task["shard"], "error": str(error)})
        return pa.Table.from_pylist(summaries, schema=SUMMARY_SCHEMA)

    def _make_shard(self, table: str, shard: int, path: str) -> dict[str, Any]:
        job = self._spec.tables[table]
        rows = self._wait_for_rows(job, shard, path)
        deadline_s = self._spec.commit_deadline_s
        action = write_file(job.completions_uri, rows_to_table(rows), shard, job.footer, deadline_s)
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
        try:
            return work.result(timeout=self._spec.shard_deadline_s)
        except TimeoutError:
            work.cancel()  # and with it the calls that the teacher still holds
            raise DeadlineExceeded(
                f"shard {shard} of {job.completions_uri} was not done in {self._spec.shard_deadline_s:.0f} s "
                f"(deadlines.no_progress): the teacher {self._spec.app_name} holds some of its {len(prompts)} prompts"
            ) from None

    async def _complete_shard(self, job: TableJob, prompts: list[dict[str, Any]]) -> list[Row]:
        """The rows of a shard in the order of its prompts, whatever order their answers came in."""
        planned: dict[str, PlannedPrompt] = {}
        failures: dict[str, str] = {}
        for prompt in prompts:
            token_ids, error = self._render(prompt)
            planned[prompt["prompt_id"]] = PlannedPrompt(
                prompt["prompt_id"], prompt["shard"], prompt["prompt"], prompt["answer"], token_ids
            )
            if error is not None:
                failures[prompt["prompt_id"]] = error
        wanted = [each for each in planned.values() if each.prompt_id not in failures]
        results = await self._complete([to_request(each, job.sampling) for each in wanted], job.sampling)
        answers = dict(zip((each.prompt_id for each in wanted), results, strict=True))
        rows: list[Row] = []
        for each in planned.values():
            rows += self._to_rows(job, each, answers.get(each.prompt_id), failures.get(each.prompt_id))
        return rows

    async def _complete(self, requests: list[GenerateRequest], sampling: SamplingConfig) -> list[GenerateResult]:
        results = await self._complete_once(requests)
        if sampling.truncation is not TruncationPolicy.RETRY_ONCE:
            return results
        limit = sampling.retry_max_tokens or 2 * sampling.max_tokens
        again = [i for i, result in enumerate(results) if any(s.finish_reason == "length" for s in result.samples)]
        longer = await self._complete_once([replace(requests[i], max_tokens=limit) for i in again])
        for i, result in zip(again, longer, strict=True):
            results[i] = result
        return results

    async def _complete_once(self, requests: list[GenerateRequest]) -> list[GenerateResult]:
        size = max(1, self._spec.generation.rows_per_call // max(each.n for each in requests)) if requests else 1
        calls = (requests[start : start + size] for start in range(0, len(requests), size))
        done = await asyncio.gather(*(self._requester.complete(call) for call in calls))
        return [result for call in done for result in call]

    def _render(self, prompt: dict[str, Any]) -> tuple[list[int], str | None]:
        if prompt["error"] is not None:
            return [], prompt["error"]
        try:
            return self._renderer.render(json.loads(prompt["prompt"])), None
        except ValueError as error:  # this prompt's fault: a role the template refuses, say
            return [], f"template: {error}"

    def _to_rows(
        self, job: TableJob, prompt: PlannedPrompt, result: GenerateResult | None, failure: str | None
    ) -> Iterator[Row]:
        error = failure if result is None else result.error
        if result is None or error is not None:
            return failed_rows(prompt, job.sampling.n, error or "no result")
        return judge(prompt, result, self._renderer.decode, job.acceptance, job.sampling.truncation)


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
