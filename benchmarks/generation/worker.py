"""vLLM's CPU worker, bound to the engine's core, which notes the resolved configuration. vLLM imports it by name."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

from benchmarks.generation.engine import CORE_VARIABLE, RECORDS_VARIABLE


class BoundWorker(CPUWorker):
    """Its thread makes every step of the model, in any executor."""

    def init_device(self) -> None:
        os.sched_setaffinity(0, {int(os.environ[CORE_VARIABLE])})  # 0 is the calling thread, not the process
        super().init_device()

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        record = {"thread": threading.get_native_id(), "configuration": _describe(self.vllm_config, kv_cache_config)}
        directory = Path(os.environ[RECORDS_VARIABLE])
        temporary = directory / f"{os.getpid()}.partial"
        temporary.write_text(json.dumps(record))
        temporary.rename(directory / f"{os.getpid()}.json")


def _describe(vllm_config: Any, kv_cache_config: Any) -> dict[str, Any]:
    model, scheduler, cache = vllm_config.model_config, vllm_config.scheduler_config, vllm_config.cache_config
    return {
        "model": model.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "enforce_eager": model.enforce_eager,
        "max_model_len": model.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "chunked_prefill": scheduler.enable_chunked_prefill,
        "async_scheduling": bool(scheduler.async_scheduling),
        "prefix_caching": cache.enable_prefix_caching,
        "block_size": cache.block_size,
        "kv_blocks": kv_cache_config.num_blocks,
        "kv_bytes": sum(each.size for each in kv_cache_config.kv_cache_tensors),
        "kv_dtype": cache.cache_dtype,
        "tensor_parallel_size": vllm_config.parallel_config.tensor_parallel_size,
        "threads": torch.get_num_threads(),
        "cores": sorted(os.sched_getaffinity(0)),
    }
