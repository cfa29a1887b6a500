"""A vLLM engine stepped in process, on one thread of its own; the CPU engine of a teacher replica.

On a CPU this is both the fastest way to run vLLM (no second process spins beside the worker) and the quickest to
start (one import). The engine is built on the thread that steps it, so that its OpenMP team belongs to that thread.
"""

import asyncio
import gc
import queue
import threading
from dataclasses import dataclass
from typing import Any

from services.generation import EngineDescription, GenerateRequest, GenerateResult
from services.replica import end_replica
from services.vllm_adapter import describe, sampling_params, to_result

IDLE_POLL_S = 0.5  # only how soon a thread without work notices that it should end
WARM_UP_TOKENS = 4  # enough to pick every kernel of prefill and decode once


@dataclass(slots=True)
class _Pending:
    request: GenerateRequest
    future: "asyncio.Future[GenerateResult]"


class InProcessEngine:
    """`vllm.v1.engine.llm_engine.LLMEngine` on a thread. ``engine_kwargs`` are vLLM's `EngineArgs` but the model.

    All callers share one event loop. An engine that dies once it has started ends the process.
    """

    def __init__(self, model: str, engine_kwargs: dict[str, Any]) -> None:
        self._model = model
        self._engine_kwargs = engine_kwargs
        self._inbox: queue.SimpleQueue[_Pending | str] = queue.SimpleQueue()
        self._pending: dict[str, _Pending] = {}
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self.description: EngineDescription | None = None

    def start(self) -> None:
        """Build and warm the engine up. Raises `RuntimeError` with vLLM's own message when that fails."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise RuntimeError(f"vLLM could not start: {self._failure}") from self._failure

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Complete one prompt; cancelling aborts the request."""
        pending = _Pending(request, asyncio.get_running_loop().create_future())
        self._inbox.put(pending)
        try:
            return await pending.future
        except asyncio.CancelledError:
            self._inbox.put(request.request_id)
            raise

    def shutdown(self) -> None:
        """Let the thread end after its current step."""
        self._stopping.set()

    # --- on the engine thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:  # handed to start(), which raises it
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        try:
            while not self._stopping.is_set():
                self._take_inbox(engine)
                if self._pending:
                    self._deliver(engine.step())
        except BaseException as error:
            end_replica(error)

    def _build(self) -> Any:
        # Imported on the engine's thread and not before: importing vLLM costs seconds, and only replicas need it.
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine as VllmEngine

        engine_args = EngineArgs(
            model=self._model,
            distributed_executor_backend="uni",
            disable_log_stats=True,
            **self._engine_kwargs,
        )
        engine = VllmEngine.from_engine_args(engine_args)
        self.description = describe(engine.vllm_config, "in_process")
        warm_up = GenerateRequest("warm-up", [0, 0, 0, 0], 1, WARM_UP_TOKENS, 0.0, 1.0, 0, (), 0)
        engine.add_request("warm-up", {"prompt_token_ids": warm_up.prompt_token_ids}, sampling_params(warm_up))
        while engine.has_unfinished_requests():
            engine.step()
        gc.freeze()  # as vLLM does in an engine process of its own: its modules are garbage to nobody
        return engine

    def _take_inbox(self, engine: Any) -> None:
        """Admit all that has arrived; without work in flight, wait for the next arrival."""
        idle = not self._pending
        while True:
            try:
                item = self._inbox.get(timeout=IDLE_POLL_S) if idle else self._inbox.get_nowait()
            except queue.Empty:
                return
            idle = False
            if not isinstance(item, str):
                self._admit(engine, item)
            elif self._pending.pop(item, None) is not None:
                engine.abort_request([item])

    def _admit(self, engine: Any, pending: _Pending) -> None:
        from vllm.exceptions import VLLMClientError  # this thread has imported vLLM already

        request = pending.request
        try:
            engine.add_request(
                request.request_id, {"prompt_token_ids": request.prompt_token_ids}, sampling_params(request)
            )
        except (ValueError, VLLMClientError) as error:  # vLLM's refusal of this one prompt: too long, a bad token
            _resolve([(pending, GenerateResult(request.request_id, error=str(error)))])
            return
        self._pending[request.request_id] = pending

    def _deliver(self, outputs: list[Any]) -> None:
        done = [
            (pending, to_result(output.request_id, output))
            for output in outputs
            if output.finished and (pending := self._pending.pop(output.request_id, None)) is not None
        ]
        if done:
            _resolve(done)


def _resolve(done: list[tuple[_Pending, GenerateResult]]) -> None:
    """Hand over what a step has finished. The callers' loop is woken once for all: that costs a system call."""

    def settle() -> None:
        for pending, result in done:
            if not pending.future.done():  # it may have been cancelled meanwhile
                pending.future.set_result(result)

    loop = done[0][0].future.get_loop()
    loop.call_soon_threadsafe(settle)
