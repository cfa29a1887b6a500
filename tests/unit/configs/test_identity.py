"""What may change between two commands on one run directory, and what makes it another run."""

from typing import Any

import pytest

from configs.identity import (
    GENERATION_SECTIONS,
    OPERATIONAL_KEYS,
    differing_keys,
    generation_fingerprint,
    identity,
)
from configs.schema import RunConfig
from tests.unit.configs.trees import OPERATIONAL, make_config

pytestmark = pytest.mark.unit

# Keys that decide what is made, and whether they decide what the teacher writes.
DECIDING: dict[str, tuple[Any, bool]] = {
    "name": ("other", False),
    "teacher.make.addition.seed": (5, True),
    "teacher.make.model.arguments": ({"hidden_size": 64}, True),
    "teacher.make.training.max_steps": (11, True),
    "teacher.make.training.optimizer.learning_rate": (1e-3, True),
    "teacher.make.training.dtype": ("float32", True),
    "teacher.chat_template_kwargs": ({"enable_thinking": False}, True),
    "teacher.engine.dtype": ("float32", True),
    "teacher.engine.max_model_len": (2048, True),
    "teacher.engine.extra": ({"kv_cache_dtype": "fp8"}, True),
    "teacher.engine.quantization": ("fp8", True),
    "teacher.engine.speculative_config": ({"method": "ngram"}, True),
    "prompts.addition.num_problems": (11, True),
    "prompts.limit": (5, True),
    "prompts.on_broken_line": ("fail_row", True),
    "sampling.n": (2, True),
    "sampling.temperature": (0.1, True),
    "sampling.stop": (["END"], True),
    "sampling.seed": (1, True),
    "sampling.top_logprobs": (4, True),
    "acceptance.verifier": ("exact_answer", True),
    "acceptance.min_completion_tokens": (2, True),
    "generation.shard_rows": (5, True),
    "student.transfer": ("text", False),
    "student.init.arguments": ({"hidden_size": 8}, False),
    "training.sequence_length": (8, False),
    "training.batch_sequences": (8, False),
    "training.optimizer.schedule": ("wsd", False),
    "training.seed": (1, False),
    "training.objective.ground_truth_share": (0.5, False),
    "evaluation.max_tokens": (8, False),
    "evaluation.addition.num_problems": (8, False),
}


def base(**changed: Any) -> RunConfig:
    # Two workers are enough for a tensor-parallel group.
    tree = {"evaluation__addition": {"num_problems": 5}, "teacher__max_replicas": 3, "training__num_workers": 2}
    return make_config(**{**tree, **changed})


def changed(key: str, value: Any) -> RunConfig:
    return base(**{key.replace(".", "__"): value})


def test_operational_examples_cover_every_operational_key() -> None:
    assert {key if key in OPERATIONAL_KEYS else key.split(".")[0] for key in OPERATIONAL} == OPERATIONAL_KEYS


def test_operational_keys_are_keys_of_the_configuration() -> None:
    for key in OPERATIONAL_KEYS:
        node: Any = base()
        for part in key.split("."):
            assert part in type(node).model_fields, key
            node = getattr(node, part)


@pytest.mark.parametrize("key", OPERATIONAL)
def test_operational_key_differs_in_nothing(key: str) -> None:
    other = changed(key, OPERATIONAL[key])
    assert other != base()
    assert differing_keys(base(), other) == []
    assert generation_fingerprint(base()) == generation_fingerprint(other)


@pytest.mark.parametrize("key", [key for key in OPERATIONAL if key.startswith("training.")])
def test_operational_key_of_the_teachers_training_differs_in_nothing(key: str) -> None:
    other = changed(f"teacher.make.{key}", OPERATIONAL[key])
    assert other != base()
    assert differing_keys(base(), other) == []
    assert generation_fingerprint(base()) == generation_fingerprint(other)


@pytest.mark.parametrize("key", DECIDING)
def test_deciding_key_differs_under_its_own_name(key: str) -> None:
    value, decides_answers = DECIDING[key]
    other = changed(key, value)
    assert differing_keys(base(), other) == [key]
    assert differing_keys(other, base()) == [key]
    assert (generation_fingerprint(base()) != generation_fingerprint(other)) == decides_answers


def test_deciding_section_that_only_one_has_differs() -> None:
    assert "evaluation.addition.num_problems" in differing_keys(make_config(), base())


def test_several_deciding_keys_are_named_in_order() -> None:
    other = base(training__seed=1, sampling__seed=1, generation__clients=5)
    assert differing_keys(base(), other) == ["sampling.seed", "training.seed"]


def test_identity_ignores_the_order_of_a_mapping() -> None:
    one = changed("teacher.engine.extra", {"a": 1, "b": {"c": 2, "d": 3}})
    other = changed("teacher.engine.extra", {"b": {"d": 3, "c": 2}, "a": 1})
    assert differing_keys(one, other) == []
    assert generation_fingerprint(one) == generation_fingerprint(other)


def test_generation_sections_are_sections() -> None:
    assert set(GENERATION_SECTIONS) <= RunConfig.model_fields.keys()
    assert {key.split(".")[0] for key in identity(base())} >= set(GENERATION_SECTIONS)
