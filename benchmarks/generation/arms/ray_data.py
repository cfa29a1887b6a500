"""`ray.data.llm`: its vLLM engine processor, and its Serve deployment processor, each into Parquet.

The engine processor starts its engine with each execution of a data set. To start it once, as the other arms do, all
runs are one execution, whose source waits for the rows of the next run.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.generation.arms import RUN_S, START_S, ArmSettings, RowDone, Run
from benchmarks.generation.workloads import WorkItem
from benchmarks.ray_cluster import ray_cluster

BATCH_ROWS = 64  # of the engine processor; 64 rows times 8 batches in flight was the best shape that Ray's own found
CONCURRENT_BATCHES = 8
SERVE_BATCH_ROWS = 128  # as many as the engine decodes: an actor of the Serve stage has one batch in flight
SERVE_ACTORS = 2  # the second one's rows are there when the first one's batch comes to its end
BLOCKS = 16  # of a run: enough that rows come out all the time
FILLER = -1  # index of a row that only fills a batch up
LONGEST_RUNS = 64  # of one execution
POLL_S = 0.02
GATE_POLL_S = 0.1  # it waits while the other arm works, and must not disturb it
APP_NAME, DEPLOYMENT_NAME = "llm", "llm"
# Without a column ``prompt``, which travels along and which the engine's stage would take for a text.
INPUT_SCHEMA = pa.schema(
    [("run", pa.int64()), ("index", pa.int64()), ("token_ids", pa.list_(pa.int64())), ("max_tokens", pa.int64())]
)


@contextmanager
def open_engine(settings: ArmSettings) -> Iterator["EngineArm"]:
    """The data set is executed on a thread, from now until the process ends."""
    with ray_cluster(settings.directory):
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        config = vLLMEngineProcessorConfig(
            model_source=settings.model,
            engine_kwargs={**settings.engine, "disable_log_stats": True},
            concurrency=1,
            batch_size=BATCH_ROWS,
            max_concurrent_batches=CONCURRENT_BATCHES,
            max_pending_requests=settings.window_rows,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
            placement_group_config={"bundles": [{"CPU": 1}]},  # it asks for a GPU otherwise
        )
        processor = build_processor(config, preprocess=_to_engine_row, postprocess=_from_engine_row)
        yield EngineArm(settings.directory, processor)


class EngineArm:
    """Opens the gate for one run after the other, and waits for its rows in the output directory."""

    def __init__(self, directory: Path, processor: Callable[[Any], Any]) -> None:
        self._gates, self._output = directory / "gates", directory / "output"
        self._gates.mkdir()
        self._output.mkdir()
        self._processor = processor
        self._number = 0
        self._read: set[Path] = set()
        self._failure: BaseException | None = None
        threading.Thread(target=self._execute, name="ray-data", daemon=True).start()

    def prepare(self, rows: list[WorkItem], number: int, *, reorder: bool = True) -> Run:
        gate = self._gates / f"{self._number}.parquet"
        partial = gate.with_suffix(".partial")
        pq.write_table(_fill_up(_to_table(rows, self._number)), partial)
        run, self._number = self._number, self._number + 1
        return lambda: self._run(partial, gate, run, len(rows))

    def _run(self, partial: Path, gate: Path, run: int, num_rows: int) -> list[RowDone]:
        done: list[RowDone] = []
        give_up_at = time.monotonic() + RUN_S
        partial.rename(gate)
        while len(done) < num_rows:
            if self._failure is not None:
                raise RuntimeError(f"Ray Data ended: {self._failure}") from self._failure
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"Ray Data had written {len(done)} of {num_rows} rows after {RUN_S:.0f} s")
            time.sleep(POLL_S)
            done += self._read_new(run)
        return done

    def _read_new(self, run: int) -> Iterator[RowDone]:
        for path in set(self._output.glob("*.parquet")) - self._read:
            try:
                rows = list(_read_output(path, run))
            except (pa.ArrowInvalid, OSError):  # not closed yet
                continue
            self._read.add(path)
            yield from rows

    def _execute(self) -> None:
        import ray

        gates = str(self._gates)
        try:
            tasks = ray.data.range(LONGEST_RUNS * BLOCKS, override_num_blocks=LONGEST_RUNS * BLOCKS)
            rows = tasks.map_batches(
                _wait_at_gate, fn_args=(gates,), batch_size=None, batch_format="pyarrow", num_cpus=0.1, concurrency=1
            )
            self._processor(rows).write_parquet(str(self._output))
        except BaseException as error:  # raised by the run that waits
            self._failure = error


@contextmanager
def open_serve(settings: ArmSettings) -> Iterator["ServeArm"]:
    """The deployment is Serve's own LLM server, with as many requests at a time as the processor sends."""
    with ray_cluster(settings.directory):
        from ray import serve
        from ray.data.llm import ServeDeploymentProcessorConfig, build_processor
        from ray.serve.llm import LLMConfig, build_llm_deployment
        from ray.serve.llm.openai_api_models import CompletionRequest

        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
        llm_config = LLMConfig(
            model_loading_config={"model_id": "bench", "model_source": settings.model},
            engine_kwargs={**settings.engine, "disable_log_stats": True},
            accelerator_config={"kind": "cpu"},
            deployment_config={
                "name": DEPLOYMENT_NAME,
                "num_replicas": 1,
                "autoscaling_config": None,
                "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
            },
            log_engine_metrics=False,
        )
        app = build_llm_deployment(llm_config, override_serve_options={"name": DEPLOYMENT_NAME})
        serve.run_many([serve.RunTarget(app, name=APP_NAME, route_prefix=None)], wait_for_applications_running=False)
        _wait_until_running()
        config = ServeDeploymentProcessorConfig(
            deployment_name=DEPLOYMENT_NAME,
            app_name=APP_NAME,
            dtype_mapping={"CompletionRequest": CompletionRequest},
            batch_size=SERVE_BATCH_ROWS,
            concurrency=SERVE_ACTORS,
        )
        yield ServeArm(
            settings.directory, build_processor(config, preprocess=_to_serve_row, postprocess=_from_serve_row)
        )


class ServeArm:
    """The engine lives in Serve, so each run is an execution of its own."""

    def __init__(self, directory: Path, processor: Callable[[Any], Any]) -> None:
        self._directory = directory
        self._processor = processor

    def prepare(self, rows: list[WorkItem], number: int, *, reorder: bool = True) -> Run:
        import ray

        table, output = _to_table(rows, number), self._directory / f"output-{number}"
        size = -(-len(rows) // BLOCKS)
        blocks = [table.slice(start, size) for start in range(0, len(rows), size)]
        data = self._processor(ray.data.from_arrow(blocks))
        return lambda: self._run(data, output, number)

    def _run(self, data: Any, output: Path, number: int) -> list[RowDone]:
        data.write_parquet(str(output))
        return [row for path in output.glob("*.parquet") for row in _read_output(path, number)]


def _to_table(rows: list[WorkItem], run: int) -> pa.Table:
    if any(row.n > 1 for row in rows):
        raise ValueError("ray.data.llm keeps one sample of a prompt: run it with n = 1")
    columns = {
        "run": [run] * len(rows),
        "index": [row.index for row in rows],
        "token_ids": [row.token_ids for row in rows],
        "max_tokens": [row.max_tokens for row in rows],
    }
    return pa.table(columns, schema=INPUT_SCHEMA)


def _fill_up(table: pa.Table) -> pa.Table:
    """Rows of one token up to whole batches: Ray Data keeps a part of a batch until more rows come."""
    missing = -table.num_rows % BATCH_ROWS
    first = table.slice(0, 1).to_pylist()[0]
    filler = pa.Table.from_pylist([first | {"index": FILLER, "max_tokens": 1}] * missing, schema=INPUT_SCHEMA)
    return pa.concat_tables([table, filler])


def _wait_at_gate(block: pa.Table, gates: str) -> pa.Table:
    """The rows of the run and the part of it that this task stands for, once they are there."""
    run, part = divmod(block.column("id")[0].as_py(), BLOCKS)
    gate = Path(gates) / f"{run}.parquet"
    while not gate.exists():  # the task ends with its cluster
        time.sleep(GATE_POLL_S)
    rows = pq.read_table(gate, schema=INPUT_SCHEMA)
    size = BATCH_ROWS * -(-rows.num_rows // (BATCH_ROWS * BLOCKS))
    return rows.slice(part * size, size)


def _to_engine_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": row["run"],
        "index": row["index"],
        "tokenized_prompt": [int(each) for each in row["token_ids"]],  # its request refuses arrays
        "sampling_params": {
            "temperature": 0.0,
            "max_tokens": int(row["max_tokens"]),
            "ignore_eos": True,
            "detokenize": False,
        },
    }


def _from_engine_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": row["run"],
        "index": row["index"],
        "tokens": row["num_generated_tokens"],
        "generated_tokens": row["generated_tokens"],
        "at": time.time(),
    }


def _to_serve_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": row["run"],
        "index": row["index"],
        "method": "completions",
        "dtype": "CompletionRequest",
        "request_kwargs": {
            "model": "bench",
            "prompt": [int(each) for each in row["token_ids"]],
            "max_tokens": int(row["max_tokens"]),
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": False,
        },
    }


def _from_serve_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": row["run"],
        "index": row["index"],
        "tokens": row["usage"]["completion_tokens"],
        "text": row["choices"][0]["text"],
        "at": time.time(),
    }


def _read_output(path: Path, run: int) -> Iterator[RowDone]:
    for row in pq.read_table(path, columns=["run", "index", "tokens", "at"]).to_pylist():
        if row["run"] == run and row["index"] != FILLER:
            yield RowDone(row["index"], row["tokens"], row["at"])


def _wait_until_running() -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    give_up_at = time.monotonic() + START_S
    while (status := serve.status().applications[APP_NAME]).status != ApplicationStatus.RUNNING:
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(f"the LLM server could not start: {status.message}")
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"the LLM server was not ready after {START_S:.0f} s: {status.message}")
        time.sleep(POLL_S)
