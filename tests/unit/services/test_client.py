"""What a prompt asks of the engine: the same whoever asks, and whenever."""

import pytest

from configs.schema import GenerationConfig, SamplingConfig
from services.acceptance import PlannedPrompt
from services.client import ClientSpec, to_request
from services.generation import GenerateRequest

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
    spec = ClientSpec(
        app_name="teacher",
        tables={},
        tokenizer="",
        tokenizer_revision=None,
        chat_template_kwargs={},
        trust_remote_code=False,
        generation=GenerationConfig(shard_rows=512),
        window_rows=window_rows,
        request_deadline_s=1.0,
        shard_deadline_s=1.0,
        commit_deadline_s=1.0,
    )
    assert spec.shards_at_once == shards
