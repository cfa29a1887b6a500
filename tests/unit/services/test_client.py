"""What a prompt asks of the engine: the same whoever asks, and whenever."""

from pathlib import Path

import pytest
from deltalake import DeltaTable

from configs.errors import DeadlineExceeded
from configs.schema import AcceptanceConfig, GenerationConfig, SamplingConfig
from services.acceptance import PlannedPrompt
from services.client import TableJob, to_request
from services.generation import GenerateRequest
from services.table import shard_files
from tests.unit.services.clients import StandInTeacher, make_client, make_spec
from tests.unit.services.shards import make_plan, make_prompts

pytestmark = pytest.mark.unit


def planned(prompt_id: str = "a", shard: int = 0, token_ids: tuple[int, ...] = (1, 2)) -> PlannedPrompt:
    return PlannedPrompt(prompt_id, shard, '"x"', "5", list(token_ids))


def test_to_request_carries_the_sampling_of_the_recipe() -> None:
    sampling = SamplingConfig(n=3, temperature=0.5, top_p=0.9, top_k=7, max_tokens=11, stop=("END",), top_logprobs=4)
    request = to_request(planned(), sampling)
    assert request == GenerateRequest("a", [1, 2], 3, 11, 0.5, 0.9, 7, ("END",), request.seed, 4)


def test_to_request_seed_depends_on_the_prompt_and_the_runs_seed_alone() -> None:
    first = to_request(planned("a", 0), SamplingConfig(seed=1))
    assert to_request(planned("a", 9), SamplingConfig(seed=1, temperature=0.1)).seed == first.seed
    assert to_request(planned("b", 0), SamplingConfig(seed=1)).seed != first.seed
    assert to_request(planned("a", 0), SamplingConfig(seed=2)).seed != first.seed


def test_to_request_seed_is_the_same_in_every_process() -> None:
    """A known value: a seed that changes between versions or processes would change the rows of a resumed run."""
    assert to_request(planned("a"), SamplingConfig(seed=0)).seed == 502515194


def test_to_request_seeds_fit_the_engine_and_spread() -> None:
    seeds = {to_request(planned(str(number)), SamplingConfig()).seed for number in range(1000)}
    assert len(seeds) == 1000
    assert min(seeds) >= 0
    assert max(seeds) < 2**31


@pytest.mark.parametrize(
    ("window_rows", "shards"),
    [(12, 3), (384, 8), (512, 10), (24_576, 386)],
    ids=["a small engine", "one replica", "a window of one shard", "64 replicas"],
)
def test_client_opens_shards_of_eight_windows_and_two_more(window_rows: int, shards: int) -> None:
    spec = make_spec(window_rows=window_rows, generation=GenerationConfig(shard_rows=512))
    assert spec.shards_at_once == shards


def wait_for_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: StandInTeacher, num_rows: int, deadline_s: float
) -> int:
    """Rows of one shard of so many, of a client that waits so long for progress."""
    prompts = tmp_path / "prompts"
    make_plan(prompts, make_prompts(num_rows), shard_rows=num_rows)
    [shard] = shard_files(DeltaTable(str(prompts)))
    job = TableJob(str(prompts), "", SamplingConfig(), AcceptanceConfig(), {})
    with make_client(monkeypatch, make_spec(window_rows=5, shard_deadline_s=deadline_s), teacher) as client:
        return len(client._wait_for_rows(job, shard.shard, shard.path))


def test_shard_that_takes_longer_than_the_deadline_is_waited_for_while_rows_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty rows, five at a time and a quarter of a second each: a third longer than the deadline."""
    assert wait_for_shard(tmp_path, monkeypatch, StandInTeacher(row_s=0.25), num_rows=40, deadline_s=1.5) == 40


def test_shard_of_which_no_row_comes_back_ends_with_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeadlineExceeded, match=r"no row came back for 0 s \(deadlines.no_progress\)"):
        wait_for_shard(tmp_path, monkeypatch, StandInTeacher(row_s=3600.0), num_rows=3, deadline_s=0.1)
