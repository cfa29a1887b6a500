"""What vLLM's outputs become; its objects are stood in for by plain ones of the same attributes."""

from types import SimpleNamespace

import pytest

from services.generation import GenerateResult, Sample
from services.vllm_adapter import describe, to_result

pytestmark = pytest.mark.unit


def completion(index: int, finish_reason: str | None, token_ids: tuple[int, ...] = (4, 5)) -> SimpleNamespace:
    return SimpleNamespace(index=index, token_ids=token_ids, finish_reason=finish_reason, logprobs=None)


def test_to_result_puts_samples_in_order_of_their_index() -> None:
    outputs = [completion(2, "stop", (7,)), completion(0, "length", (8, 9)), completion(1, "stop", ())]
    assert to_result("a", SimpleNamespace(outputs=outputs)) == GenerateResult(
        "a", (Sample([8, 9], "length"), Sample([], "stop"), Sample([7], "stop"))
    )


def test_to_result_keeps_the_likeliest_tokens_in_order_and_leaves_out_a_drawn_one_that_is_none() -> None:
    def place(**ranked: tuple[int, float]) -> dict[int, SimpleNamespace]:
        return {int(name[1:]): SimpleNamespace(rank=rank, logprob=value) for name, (rank, value) in ranked.items()}

    places = [place(t7=(9, -5.0), t3=(1, -0.5), t4=(2, -1.0)), place(t4=(2, -2.0), t8=(1, -0.25))]
    output = completion(0, "stop", (7, 8))
    output.logprobs = places
    [sample] = to_result("a", SimpleNamespace(outputs=[output])).samples
    assert (sample.topk_ids, sample.topk_logprobs) == ([3, 4, 8, 4], [-0.5, -1.0, -0.25, -2.0])


@pytest.mark.parametrize("finish_reason", ["abort", "error", "repetition", None])
def test_to_result_sample_that_the_engine_ended_is_an_error_and_no_row(finish_reason: str | None) -> None:
    output = SimpleNamespace(outputs=[completion(0, "stop"), completion(1, finish_reason)])
    with pytest.raises(RuntimeError, match=f"request a was ended by the engine: {finish_reason}"):
        to_result("a", output)


def test_describe_reads_back_what_the_engine_resolved() -> None:
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model="m", dtype="torch.bfloat16", max_model_len=64, quantization="fp8", get_vocab_size=lambda: 100
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=256, enable_chunked_prefill=False),
        parallel_config=SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=1),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        speculative_config=SimpleNamespace(method="ngram", model=None, num_speculative_tokens=4, other=1),
    )
    found = describe(config, "async")
    assert (found.dtype, found.quantization, found.enable_prefix_caching) == ("bfloat16", "fp8", False)
    assert found.speculative_config == {"method": "ngram", "model": None, "num_speculative_tokens": 4}
    config.speculative_config = config.model_config.quantization = None
    assert (describe(config, "async").speculative_config, describe(config, "async").quantization) == (None, None)
