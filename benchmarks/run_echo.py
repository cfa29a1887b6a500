"""A whole run on the echo teacher in an embedded cluster: plan, stream and seal, each timed, for the benchmarks."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.echo import EchoScript, deploy
from benchmarks.ray_cluster import ray_home
from configs.schema import AcceptanceConfig, GenerationConfig, SamplingConfig
from configs.table import COMPLETIONS_SCHEMA
from services.client import ClientSpec, TableJob
from services.dataset import pending_shards, seal
from services.plan import extend_plan
from services.prompts import Prompt, make_prompt
from services.table import open_or_create

APP_NAME = "echo"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 "
COMMIT_S, REQUEST_S, PROGRESS_S = 60.0, 60.0, 300.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the parts of a run."""

    plan_s: float
    stream_s: float
    seal_s: float


@contextmanager
def echo_cluster(num_cpus: int = 4, object_store_mib: int = 100) -> Iterator[Path]:
    """An embedded Ray with the echo teacher; yields a directory that is gone afterwards, as is everything else."""
    with ray_home("echo") as home:
        import ray  # after the environment, which it reads

        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=object_store_mib * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(home.directory / "ray"),
        )
        deploy(APP_NAME, EchoScript(), num_cpus=1)
        make_tokenizer(home.directory / "tokenizer")
        yield home.directory


def make_tokenizer(directory: Path) -> None:
    """A tokenizer of one token per character, from the project's own."""
    from training.tokenizer import build_character_tokenizer  # imports transformers

    build_character_tokenizer(CHARACTERS).save_pretrained(directory)


def run_rows(
    directory: Path,
    num_rows: int,
    generation: GenerationConfig,
    on_shard: Callable[[], None] = lambda: None,
    name: str | None = None,
) -> Timing:
    """Plan, make and seal a run of ``num_rows`` prompts below ``directory``; a run of the same ``name`` goes on."""
    from services.pipeline import Feed, stream_shards  # imports Ray

    run = directory / (name or f"run-{num_rows}-{time.monotonic_ns()}")
    prompts_uri, completions_uri = str(run / "prompts"), str(run / "completions")
    started = time.monotonic()
    extend_plan(
        prompts_uri,
        make_prompts(num_rows),
        samples_per_prompt=1,
        shard_rows=generation.shard_rows,
        commit_deadline_s=COMMIT_S,
    )
    open_or_create(completions_uri, COMPLETIONS_SCHEMA, "completions")
    planned = time.monotonic()
    pending = pending_shards(prompts_uri, completions_uri)
    tasks = [{"table": "completions", "shard": shard.shard, "path": shard.path} for shard in pending]
    table = TableJob(prompts_uri, completions_uri, SamplingConfig(max_tokens=32), AcceptanceConfig(), {})
    for _ in stream_shards([Feed(client_spec(directory, table, generation), tasks)]):
        on_shard()
    streamed = time.monotonic()
    ledger = seal(prompts_uri, completions_uri, 1).ledger
    assert (ledger.planned, ledger.pending, ledger.failed) == (num_rows, 0, 0)
    return Timing(planned - started, streamed - planned, time.monotonic() - streamed)


def make_prompts(number: int) -> Iterator[Prompt]:
    """Different prompts of about a dozen characters."""
    return (make_prompt(f"problem {each} of many") for each in range(number))


def client_spec(directory: Path, table: TableJob, generation: GenerationConfig) -> ClientSpec:
    """What the clients of a benchmark need to know."""
    return ClientSpec(
        app_name=APP_NAME,
        tables={"completions": table},
        tokenizer=str(directory / "tokenizer"),
        tokenizer_revision=None,
        chat_template_kwargs={},
        trust_remote_code=False,
        generation=generation,
        window_rows=generation.window_rows or 1024,
        request_deadline_s=REQUEST_S,
        shard_deadline_s=PROGRESS_S,
        commit_deadline_s=COMMIT_S,
    )
