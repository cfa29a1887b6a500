"""The recipe's keys on their way to vLLM, and what came of them."""

import ast
from pathlib import Path
from typing import Any

import pytest

from configs.schema import MARKING_ARGUMENTS, Device, EngineConfig, EngineKind, TeacherConfig
from configs.watermark import WatermarkConfig
from services.engine_settings import (
    MARKING_SETTINGS,
    engine_environment,
    engine_kind,
    engine_kwargs,
    find_differences,
)

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]

RESOLVED = {
    "engine": "async",
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "enable_prefix_caching": True,
    "enable_chunked_prefill": True,
    "quantization": None,
    "speculative_config": None,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
}


def teacher(**engine: Any) -> TeacherConfig:
    return TeacherConfig(model="m", engine=EngineConfig(**engine))


@pytest.mark.parametrize("device", [Device.CPU, Device.GPU])
def test_keys_of_the_recipe_are_handed_to_vllm(device: Device) -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 4}
    asked = teacher(
        quantization="fp8",
        speculative_config=speculative,
        enable_prefix_caching=False,
        max_model_len=512,
        extra={"kv_cache_dtype": "fp8"},
    )
    kwargs = engine_kwargs(asked, device)
    wanted = {
        "quantization": "fp8",
        "speculative_config": speculative,
        "enable_prefix_caching": False,
        "max_model_len": 512,
        "kv_cache_dtype": "fp8",
    }
    assert kwargs | wanted == kwargs


def test_weights_are_safetensors_unless_the_recipe_says_otherwise() -> None:
    assert engine_kwargs(teacher(), Device.GPU)["load_format"] == "safetensors"
    assert engine_kwargs(teacher(extra={"load_format": "mistral"}), Device.GPU)["load_format"] == "mistral"


def test_unset_keys_are_left_to_vllm() -> None:
    kwargs = engine_kwargs(teacher(), Device.GPU)
    assert not kwargs.keys() & {"quantization", "speculative_config", "enable_prefix_caching", "max_model_len"}


def test_parallel_sizes_are_for_gpus() -> None:
    asked = teacher(tensor_parallel_size=2, pipeline_parallel_size=3)
    on_gpu = engine_kwargs(asked, Device.GPU)
    assert (on_gpu["tensor_parallel_size"], on_gpu["pipeline_parallel_size"]) == (2, 3)
    assert "tensor_parallel_size" not in engine_kwargs(asked, Device.CPU)


@pytest.mark.parametrize(
    ("kind", "device", "chosen"),
    [
        ("auto", Device.CPU, EngineKind.IN_PROCESS),
        ("auto", Device.GPU, EngineKind.ASYNC),
        ("async", Device.CPU, EngineKind.ASYNC),
        ("in_process", Device.GPU, EngineKind.IN_PROCESS),
    ],
)
def test_engine_kind_of_auto_is_chosen_by_the_device(kind: str, device: Device, chosen: EngineKind) -> None:
    assert engine_kind(EngineConfig(kind=EngineKind(kind)), device) is chosen


def test_environment_of_a_cpu_engine_says_cache_threads_and_processes() -> None:
    engine = EngineConfig(kv_cache_gib=3, threads=2)
    environment = engine_environment(engine, EngineKind.IN_PROCESS, Device.CPU)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "OMP_NUM_THREADS" not in engine_environment(engine, EngineKind.ASYNC, Device.GPU)


def test_no_difference_where_the_engine_is_as_asked() -> None:
    asked = EngineConfig(max_model_len=4096, enable_prefix_caching=True, extra={"max_num_batched_tokens": 8192})
    assert find_differences(asked, RESOLVED) == []
    assert find_differences(EngineConfig(dtype="auto"), RESOLVED) == []
    assert find_differences(EngineConfig(dtype="half"), RESOLVED | {"dtype": "float16"}) == []


@pytest.mark.parametrize(
    ("engine", "resolved", "sentence"),
    [
        (
            {"enable_prefix_caching": True},
            {"enable_prefix_caching": False},
            "the recipe asks for teacher.engine.enable_prefix_caching=True, and vLLM runs with False",
        ),
        (
            {"quantization": "fp8"},
            {"quantization": "compressed-tensors"},
            "the recipe asks for teacher.engine.quantization=fp8, and vLLM runs with compressed-tensors",
        ),
        (
            {"tensor_parallel_size": 2},
            {},
            "the recipe asks for teacher.engine.tensor_parallel_size=2, and vLLM runs with 1",
        ),
        ({"dtype": "float32"}, {}, "the recipe asks for teacher.engine.dtype=float32, and vLLM runs with bfloat16"),
        (
            {"extra": {"max_num_batched_tokens": 4096}},
            {},
            "the recipe asks for teacher.engine.max_num_batched_tokens=4096, and vLLM runs with 8192",
        ),
        (
            {"speculative_config": {"method": "ngram"}},
            {},
            "the recipe asks for teacher.engine.speculative_config={'method': 'ngram'}, and vLLM runs with None",
        ),
    ],
)
def test_key_that_vllm_resolved_to_something_else_is_one_sentence(
    engine: dict[str, Any], resolved: dict[str, Any], sentence: str
) -> None:
    assert find_differences(EngineConfig(**engine), RESOLVED | resolved) == [sentence]


def test_speculative_settings_that_vllm_does_not_describe_are_no_difference() -> None:
    asked = EngineConfig(speculative_config={"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3})
    described = {"method": "ngram", "model": None, "num_speculative_tokens": 4}
    assert find_differences(asked, RESOLVED | {"speculative_config": described}) == []
    assert len(find_differences(asked, RESOLVED | {"speculative_config": described | {"method": "eagle"}})) == 1


@pytest.mark.parametrize("device", [Device.CPU, Device.GPU])
def test_watermark_loads_its_processor_by_name_and_without_one_nothing_is_loaded(device: Device) -> None:
    mark = WatermarkConfig(key_env="MY_KEY", key_id="0" * 16, channels=8)
    plain, marked = engine_kwargs(teacher(), device), engine_kwargs(TeacherConfig(model="m", watermark=mark), device)
    assert not plain.keys() & MARKING_ARGUMENTS
    assert {key: value for key, value in marked.items() if key not in MARKING_ARGUMENTS} == plain
    assert WatermarkConfig(**marked["additional_config"][MARKING_SETTINGS]) == mark
    module, _, name = marked["logits_processors"][0].partition(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())  # it imports vLLM
    assert name in {each.name for each in tree.body if isinstance(each, ast.ClassDef)}
