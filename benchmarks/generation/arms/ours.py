"""Our own path: `services.deployment` starts the teacher, `services.pipeline` streams shards into a Delta table.

The prompts are planned beforehand, as PLAN does; a run is what GENERATE does, up to the last commit.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from deltalake import DeltaTable

import services.client
from benchmarks.generation.arms import RUN_S, START_S, ArmSettings, RowDone, Run
from benchmarks.generation.engine import RECORDS_VARIABLE, engine_environment
from benchmarks.generation.workloads import WorkItem
from benchmarks.ray_cluster import ray_cluster
from configs.schema import (
    AcceptanceConfig,
    Device,
    EngineConfig,
    EngineKind,
    GenerationConfig,
    SamplingConfig,
    TeacherConfig,
    TruncationPolicy,
)
from configs.table import COMPLETIONS_SCHEMA
from services.backlog import BacklogReporter
from services.client import ClientSpec, ShardClient, TableJob
from services.dataset import pending_shards
from services.engine_settings import engine_environment as engine_environment_of
from services.generation import GenerateRequest, GenerateResult
from services.plan import extend_plan
from services.prompts import Prompt, make_prompt
from services.requester import Keep, Requester
from services.table import open_or_create

APP_NAME = "teacher"
REQUEST_S = 600.0
COMMIT_S = 60.0
OWN_ENGINE_KEYS = (
    "dtype",
    "max_num_seqs",
    "max_model_len",
    "enable_prefix_caching",
)  # of the recipe; the others go into ``extra``
REPLIES = "replies.jsonl"


@contextmanager
def open_ours(settings: ArmSettings) -> Iterator["OursArm"]:
    """Serve, one replica with the in-process engine, and the pipeline in this process."""
    from ray import serve

    own = {key: settings.engine[key] for key in OWN_ENGINE_KEYS}
    extra = {key: value for key, value in settings.engine.items() if key not in OWN_ENGINE_KEYS}
    teacher = TeacherConfig(model=settings.model, engine=EngineConfig(**own, extra=extra))
    generation = GenerationConfig(**{"window_rows": settings.window_rows} | settings.generation)
    with ray_cluster(settings.directory):
        from services import deployment, pipeline  # after Ray's environment

        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
        _require_same_environment(engine_environment_of(teacher.engine, EngineKind.IN_PROCESS, Device.CPU))
        app = deployment.TeacherApp(
            APP_NAME,
            "bench",
            settings.model,
            teacher,
            Device.CPU,
            EngineKind.IN_PROCESS,
            generation.clients * (generation.window_rows or 1),
        )
        handle = deployment.start_teacher(app)
        deployment.wait_until_ready(APP_NAME, START_S, lambda _: None)
        # The recipe has one max_tokens for all rows, and this benchmark one for each; nothing else is different.
        pipeline.ShardClient = LengthsClient  # type: ignore[attr-defined]
        # As GENERATE does; without it the replica would be given up while the other arm has a long run.
        with BacklogReporter(handle, rows=1, deadline_s=None):
            yield OursArm(settings, generation)


class OursArm:
    """Each run has a pair of tables of its own."""

    def __init__(self, settings: ArmSettings, generation: GenerationConfig) -> None:
        self._settings = settings
        self._generation = generation

    def prepare(self, rows: list[WorkItem], number: int, *, reorder: bool = True) -> Run:
        run = self._settings.directory / f"run-{number}"
        prompts_uri, completions_uri = str(run / "prompts"), str(run / "completions")
        n = max(row.n for row in rows)
        extend_plan(
            prompts_uri,
            (_to_prompt(row) for row in rows),
            samples_per_prompt=n,
            shard_rows=self._generation.shard_rows,
            commit_deadline_s=COMMIT_S,
        )
        open_or_create(completions_uri, COMPLETIONS_SCHEMA, "completions")
        tasks = [
            {"table": "completions", "shard": shard.shard, "path": shard.path}
            for shard in pending_shards(prompts_uri, completions_uri)
        ]
        sampling = SamplingConfig(n=n, temperature=rows[0].temperature, max_tokens=1, truncation=TruncationPolicy.KEEP)
        job = TableJob(prompts_uri, completions_uri, sampling, AcceptanceConfig(min_completion_tokens=1), {})
        generation = self._generation.model_copy(update={"reorder": reorder})
        return lambda: self._run(self._client_spec(job, generation), tasks)

    def _client_spec(self, job: TableJob, generation: GenerationConfig) -> ClientSpec:
        return ClientSpec(
            app_name=APP_NAME,
            tables={"completions": job},
            tokenizer=self._settings.model,
            tokenizer_revision=None,
            chat_template_kwargs={},
            trust_remote_code=False,
            generation=generation,
            window_rows=generation.window_rows or 1,
            request_deadline_s=REQUEST_S,
            shard_deadline_s=RUN_S,
            commit_deadline_s=COMMIT_S,
        )

    def _run(self, spec: ClientSpec, tasks: list[dict[str, Any]]) -> list[RowDone]:
        from services.pipeline import Feed, stream_shards

        started = time.time()
        for _ in stream_shards([Feed(spec, tasks)]):
            pass
        return _read_rows(spec.tables["completions"].completions_uri, _replies_since(started))


class LengthsClient(ShardClient):
    """The client that each row tells how many tokens to ask for; it also notes when each row came."""

    def __init__(self, spec: ClientSpec) -> None:
        vars(services.client).update(Requester=LengthsRequester)
        super().__init__(spec)


class LengthsRequester(Requester):
    """Puts the lengths into what is sent, and times into a file."""

    async def _ask(self, requests: list[GenerateRequest], keep: Keep) -> None:
        def note(result: GenerateResult, request: GenerateRequest) -> None:
            times.append((_index_of(result.request_id), time.time()))
            keep(result, request)

        times: list[tuple[int, float]] = []
        await super()._ask([replace(each, max_tokens=_length_of(each.request_id)) for each in requests], note)
        with open(_replies_file(), "a") as file:
            file.write(json.dumps(times) + "\n")


def _to_prompt(row: WorkItem) -> Prompt:
    """The id says what the row is; two rows may have the same text."""
    return replace(make_prompt(row.text), prompt_id=f"{row.index:08d}-{row.max_tokens}")


def _index_of(prompt_id: str) -> int:
    return int(prompt_id.split("-")[0])


def _length_of(prompt_id: str) -> int:
    return int(prompt_id.split("-")[1])


def _replies_file() -> Path:
    return Path(os.environ[RECORDS_VARIABLE]) / REPLIES


def _replies_since(started: float) -> dict[int, float]:
    """When each row's reply reached the client."""
    replies = (json.loads(line) for line in _replies_file().read_text().splitlines())
    return {index: at for each in replies for index, at in each if at >= started}


def _read_rows(uri: str, replied: dict[int, float]) -> list[RowDone]:
    """What was committed: a row that is not in the table was not made."""
    table = DeltaTable(uri).to_pyarrow_table(columns=["prompt_id", "status", "num_completion_tokens"])
    bad = table.filter(pc.not_equal(table.column("status"), "accepted"))
    if bad.num_rows:
        raise RuntimeError(f"{bad.num_rows} of {table.num_rows} committed rows are not accepted: {bad.slice(0, 1)}")
    tokens: dict[int, int] = {}
    for prompt_id, count in zip(
        table.column("prompt_id").to_pylist(), table.column("num_completion_tokens").to_pylist(), strict=True
    ):
        index = _index_of(prompt_id)
        tokens[index] = tokens.get(index, 0) + count
    return [RowDone(index, count, replied[index]) for index, count in sorted(tokens.items())]


def _require_same_environment(ours: dict[str, str]) -> None:
    """The deployment sets vLLM's environment itself; the other arms must have the same."""
    shared = engine_environment(in_process=True)
    for key in ours.keys() & shared.keys():
        if ours[key] != shared[key]:
            raise RuntimeError(f"services.deployment sets {key}={ours[key]}, the other arms have {shared[key]}")
