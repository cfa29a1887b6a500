"""What vLLM's outputs become; its objects are stood in for by plain ones of the same attributes."""

from types import SimpleNamespace

import pytest

from services.generation import GenerateResult, Sample
from services.vllm_adapter import to_result

pytestmark = pytest.mark.unit


def completion(index: int, finish_reason: str | None, token_ids: tuple[int, ...] = (4, 5)) -> SimpleNamespace:
    return SimpleNamespace(index=index, token_ids=token_ids, finish_reason=finish_reason)


def test_to_result_puts_samples_in_order_of_their_index() -> None:
    outputs = [completion(2, "stop", (7,)), completion(0, "length", (8, 9)), completion(1, "stop", ())]
    assert to_result("a", SimpleNamespace(outputs=outputs)) == GenerateResult(
        "a", (Sample([8, 9], "length"), Sample([], "stop"), Sample([7], "stop"))
    )


@pytest.mark.parametrize("finish_reason", ["abort", "error", "repetition", None])
def test_to_result_sample_that_the_engine_ended_is_an_error_and_no_row(finish_reason: str | None) -> None:
    output = SimpleNamespace(outputs=[completion(0, "stop"), completion(1, finish_reason)])
    with pytest.raises(RuntimeError, match=f"request a was ended by the engine: {finish_reason}"):
        to_result("a", output)
