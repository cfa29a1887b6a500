"""The teacher replica on `ray.serve.llm`: vLLM's `AsyncLLM` behind one micro-batched method.

Placement, tensor parallelism, health checks, metrics and the OpenAI-compatible endpoint are the library's. Its import
loads vLLM, so `services.deployment` does it only where this replica is wanted.
"""

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.serve.llm import LLMConfig, build_llm_deployment, build_openai_app

from configs.terms.binding import Binding, check_binding
from services.gateway.requests import CHAT
from services.generation import GenerateRequest, GenerateResult
from services.meter import Meter
from services.replica import end_replica
from services.replies import yield_in_groups
from services.vllm_adapter import describe, sampling_params, to_result

BINDING = "stillhouse_binding"  # among the settings that `ray.serve.llm` hands on without reading them


class AsyncTeacher(LLMServer):
    """One replica. Errors are raised, never returned as rows; only the refusal of one prompt is a result."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, *args: Any, binding: Binding | None = None, **kwargs: Any
    ) -> None:
        started = time.monotonic()
        if binding is not None:
            check_binding(binding)
        await super().__init__(*args, **kwargs)
        # Ray looks for it by the name that it had before vLLM 0.29; without it nobody can count a prompt's tokens.
        self.engine._oai_serving_tokenization = self.engine._app_state.serving_tokenization
        self._meter = Meter(time.monotonic() - started)

    async def generate(self, batch: list[GenerateRequest]) -> AsyncGenerator[list[GenerateResult]]:
        """Complete a micro-batch; yields the results as rows are done. If the engine dies, so does this process."""
        _end_if_dead(self)  # a call without rows asks whether anybody is there
        with self._meter.call():
            async for results in yield_in_groups(self._complete(request) for request in batch):
                self._meter.count(results)
                yield results

    async def check_health(self) -> None:
        """Serve asks now and then."""
        _end_if_dead(self)
        await super().check_health()

    async def describe(self) -> dict[str, Any]:
        """The engine configuration as vLLM resolved it: the fields of `EngineDescription`."""
        return asdict(describe(self.engine._engine_client.vllm_config, "async"))

    async def tell_backlog(self, rows: int, seconds_left: float | None) -> float:
        """What the run still wants of all replicas together. Returns seconds since this one answered a row."""
        return self._meter.tell(rows, seconds_left)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve hands it to `services.scaling`."""
        return self._meter.report()

    async def count_prompt_tokens(self, path: str, body: dict[str, Any]) -> int | dict[str, Any]:
        """Tokens of a request's prompt as the engine would see it, or the engine's refusal under ``error``."""
        from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest

        if path == CHAT:
            wanted = {key: body[key] for key in ("model", "messages", "chat_template_kwargs") if key in body}
            request: Any = TokenizeChatRequest(**wanted)
        else:
            request = TokenizeCompletionRequest(model=body["model"], prompt=body["prompt"])
        async for counted in await self.tokenize(request):
            return counted.model_dump() if hasattr(counted, "error") else int(counted.count)
        raise RuntimeError("the engine has not counted the prompt")

    async def answer(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """An OpenAI request's answer, or the pieces of its stream, as vLLM makes them; a refusal is under ``error``.

        Plain data, so that whoever asks need not load vLLM.
        """
        from pydantic import ValidationError
        from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, CompletionRequest

        try:
            request = ChatCompletionRequest(**body) if path == CHAT else CompletionRequest(**body)
        except ValidationError as error:
            first = error.errors()[0]
            yield {"error": {"message": first["msg"], "param": ".".join(map(str, first["loc"])), "code": 400}}
            return
        async for batch in await (self.chat(request) if path == CHAT else self.completions(request)):
            for item in batch if isinstance(batch, list) else [batch]:
                if not isinstance(item, str):
                    yield item.model_dump(mode="json")
                    continue
                for event in read_events(item):
                    yield event

    async def _complete(self, request: GenerateRequest) -> GenerateResult:
        from vllm.exceptions import VLLMClientError  # the replica has imported vLLM already

        try:
            stream = self.engine._engine_client.generate(
                {"prompt_token_ids": request.prompt_token_ids}, sampling_params(request), request.request_id
            )
            async for output in stream:
                if output.finished:
                    return to_result(request.request_id, output)
        except (ValueError, VLLMClientError) as error:  # vLLM's refusal of this one prompt
            return GenerateResult(request.request_id, error=str(error))
        except Exception:
            _end_if_dead(self)
            raise
        raise RuntimeError(f"request {request.request_id} ended without a final output")


class HttpTeacher(LLMServer):
    """One replica behind vLLM's own endpoint, whose builder hands on the configuration and nothing beside it."""

    async def __init__(self, llm_config: LLMConfig, **kwargs: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        if (binding := llm_config.experimental_configs.get(BINDING)) is not None:
            check_binding(binding)
        await super().__init__(llm_config, **kwargs)

    async def check_health(self) -> None:
        """Serve asks now and then."""
        _end_if_dead(self)
        await super().check_health()


def _end_if_dead(server: LLMServer) -> None:
    # vLLM says so when a process of the engine is gone and when what reads its outputs has failed.
    if server.engine._engine_client.errored:
        end_replica(server.engine._engine_client.dead_error)


def read_events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events, without the last one, which says that it is the last."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def build_async_app(llm_config: LLMConfig, binding: Binding | None = None) -> serve.Application:
    """The application that clients of a run call through its handle."""
    bound = {"binding": binding}
    return build_llm_deployment(llm_config, name_prefix="teacher:", bind_kwargs=bound, deployment_cls=AsyncTeacher)


def build_http_app(llm_config: LLMConfig, binding: Binding | None = None) -> serve.Application:
    """The application behind vLLM's OpenAI-compatible endpoint, which lets everyone in."""
    settings = {**llm_config.experimental_configs, BINDING: binding}
    bound = llm_config.model_copy(update={"server_cls": HttpTeacher, "experimental_configs": settings})
    # The ingress only passes requests on; on two cores a CPU of its own would never be free.
    ingress = {"ray_actor_options": {"num_cpus": 0}, "num_replicas": 1, "autoscaling_config": None}
    return build_openai_app({"llm_configs": [bound], "ingress_deployment_config": ingress})
