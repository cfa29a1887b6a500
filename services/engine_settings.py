"""The recipe's teacher section as vLLM's engine arguments and environment. Imports neither Ray nor vLLM."""

from typing import Any

from configs.schema import Device, EngineConfig, EngineKind, TeacherConfig
from configs.watermark import WatermarkConfig

DTYPES = {"half": "float16", "float": "float32"}  # vLLM's other names
# The least that its vector kernels take. vLLM's 128 shares no prefix shorter than that, and decodes no faster.
CPU_BLOCK_TOKENS = 32
# By name, so that the engine's own processes can load it; its settings travel in vLLM's configuration.
MARKING_PROCESSOR, MARKING_SETTINGS = "services.watermark.processor:WatermarkProcessor", "stillhouse_watermark"
CPU_BATCHED_TOKENS = 4096  # prompt tokens of one engine step, the default of `vllm.LLM`


def engine_kind(engine: EngineConfig, device: Device) -> EngineKind:
    """The engine that ``auto`` stands for on a given device."""
    if engine.kind is not EngineKind.AUTO:
        return engine.kind
    return EngineKind.ASYNC if device is Device.GPU else EngineKind.IN_PROCESS


def engine_kwargs(teacher: TeacherConfig, device: Device) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs`, without the model."""
    engine = teacher.engine
    kwargs: dict[str, Any] = {
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        "trust_remote_code": teacher.trust_remote_code,
        "load_format": "safetensors",  # pickled weights can run code; vLLM's default falls back to them
    }
    if teacher.revision:
        kwargs["revision"] = teacher.revision
    optional = ("max_model_len", "quantization", "speculative_config", "enable_prefix_caching")
    kwargs |= {key: value for key in optional if (value := getattr(engine, key)) is not None}
    if device is Device.GPU:
        kwargs["gpu_memory_utilization"] = engine.gpu_memory_utilization
        kwargs["tensor_parallel_size"] = engine.tensor_parallel_size
        kwargs["pipeline_parallel_size"] = engine.pipeline_parallel_size
    else:
        kwargs["block_size"] = CPU_BLOCK_TOKENS
        kwargs["enforce_eager"] = True  # compiling takes longer than it saves at the sizes that run on CPUs
        # vLLM 0.29 rewinds a seeded generator after a partial prefill, which torch's CPU generator cannot do.
        kwargs["enable_chunked_prefill"] = False
        kwargs["max_num_batched_tokens"] = max(CPU_BATCHED_TOKENS, engine.max_model_len or 0)
    return kwargs | _marking_kwargs(teacher.watermark) | engine.extra


def _marking_kwargs(watermark: WatermarkConfig | None) -> dict[str, Any]:
    """What loads the processor that marks, and tells it how; without a watermark nothing. The key is not among it."""
    if watermark is None:
        return {}
    return {
        "logits_processors": [MARKING_PROCESSOR],
        "additional_config": {MARKING_SETTINGS: watermark.model_dump(mode="json")},
    }


def find_differences(engine: EngineConfig, resolved: dict[str, Any]) -> list[str]:
    """A sentence for each key of the recipe that vLLM resolved to something else; ``resolved`` is what it described.

    A key that is unset, and a dtype of ``auto``, ask for nothing.
    """
    asked = {key: getattr(engine, key) for key in type(engine).model_fields if key in resolved} | {
        key: value for key, value in engine.extra.items() if key in resolved
    }
    asked["dtype"] = DTYPES.get(engine.dtype, engine.dtype)
    return [
        f"the recipe asks for teacher.engine.{key}={value}, and vLLM runs with {resolved[key]}"
        for key, value in asked.items()
        if value not in (None, "auto") and not _is_as_asked(value, resolved[key])
    ]


def _is_as_asked(asked: Any, resolved: Any) -> bool:
    if isinstance(asked, dict):  # of many settings, vLLM describes those that matter
        return resolved is not None and all(resolved.get(key, asked[key]) == asked[key] for key in asked)
    return bool(asked == resolved)


def engine_environment(engine: EngineConfig, kind: EngineKind, device: Device) -> dict[str, str]:
    """Environment variables of a replica's process."""
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if device is Device.GPU:
        return environment
    return environment | {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
        # Pinning is for whoever owns the whole machine: beside a Ray node, two replicas would pin the same core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(engine.threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if kind is EngineKind.IN_PROCESS else "1",
    }
