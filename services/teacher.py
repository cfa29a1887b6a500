"""The teacher replica: vLLM behind one unary, micro-batched method of a Ray Serve deployment.

`services.deployment` starts and ends it; client actors call `TeacherServer.generate` through a deployment handle, not
HTTP. Placement, tensor parallelism, health checks and metrics are `ray.serve.llm`'s.
"""

import asyncio
from dataclasses import asdict
from typing import Any

from ray.llm._internal.serve.core.server.llm_server import LLMServer

from services.engine import InProcessEngine
from services.generation import GenerateRequest, GenerateResult
from services.vllm_adapter import describe, sampling_params, to_result


class TeacherServer(LLMServer):
    """One replica. Errors are raised, never returned as rows; only the refusal of one prompt is a result."""

    async def generate(self, batch: list[GenerateRequest]) -> list[GenerateResult]:
        """Complete a micro-batch; returns the results in the order of the requests.

        Raises:
            services.engine.EngineDead, vllm's EngineDeadError: the replica is lost; the caller tries elsewhere.
        """
        complete = self.engine.generate if isinstance(self.engine, InProcessEngine) else self._generate_async
        return list(await asyncio.gather(*(complete(request) for request in batch)))

    async def describe(self) -> dict[str, Any]:
        """The engine configuration as vLLM resolved it: the fields of `EngineDescription`."""
        if isinstance(self.engine, InProcessEngine):
            assert self.engine.description is not None
            return asdict(self.engine.description)
        return asdict(describe(self.engine._engine_client.vllm_config, "async"))

    async def _generate_async(self, request: GenerateRequest) -> GenerateResult:
        from vllm.exceptions import VLLMClientError  # the replica has imported vLLM already

        stream = self.engine._engine_client.generate(
            {"prompt_token_ids": request.prompt_token_ids}, sampling_params(request), request.request_id
        )
        try:
            async for output in stream:
                if output.finished:
                    return to_result(request.request_id, output)
        except (ValueError, VLLMClientError) as error:  # vLLM's refusal of this one prompt
            return GenerateResult(request.request_id, error=str(error))
        raise RuntimeError(f"request {request.request_id} ended without a final output")
