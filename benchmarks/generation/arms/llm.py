"""`vllm.LLM.generate` in process: what a script without any serving does, and the engine's own speed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.generation.arms import ArmSettings, RowDone, Run
from benchmarks.generation.workloads import WorkItem

ALL_AT_ONCE = 10**9
CHUNK_ROWS = 256


@contextmanager
def open_llm(settings: ArmSettings, chunk_rows: int = ALL_AT_ONCE) -> Iterator["LlmArm"]:
    """The engine is built and stepped on the main thread."""
    from vllm import LLM  # seconds; and it reads the environment, which the arm's process has set

    llm = LLM(model=settings.model, distributed_executor_backend="uni", disable_log_stats=True, **settings.engine)
    yield LlmArm(llm, chunk_rows)


class LlmArm:
    """Asks for all rows in one call, or for ``chunk_rows`` a call."""

    def __init__(self, llm: Any, chunk_rows: int) -> None:
        self._llm = llm
        self._chunk_rows = chunk_rows
        self._done: list[tuple[str, float]] = []
        self._step = llm.llm_engine.step
        llm.llm_engine.step = self._observed_step  # `generate` itself does not say when each row was done

    def prepare(self, rows: list[WorkItem], number: int, *, reorder: bool = True) -> Run:
        from vllm import SamplingParams

        requests = [
            (
                {"prompt_token_ids": row.token_ids},
                SamplingParams(
                    n=row.n,
                    temperature=row.temperature,
                    max_tokens=row.max_tokens,
                    ignore_eos=True,
                    detokenize=False,
                    seed=row.index if row.temperature else None,
                ),
            )
            for row in rows
        ]
        return lambda: self._run(requests)

    def _run(self, requests: list[tuple[Any, Any]]) -> list[RowDone]:
        self._done.clear()
        tokens = []
        for start in range(0, len(requests), self._chunk_rows):
            prompts, params = zip(*requests[start : start + self._chunk_rows], strict=True)
            outputs = self._llm.generate(list(prompts), list(params), use_tqdm=False)
            tokens += [(each.request_id, sum(len(sample.token_ids) for sample in each.outputs)) for each in outputs]
        moments = dict(self._done)
        return [RowDone(index, count, moments[request_id]) for index, (request_id, count) in enumerate(tokens)]

    def _observed_step(self) -> Any:
        outputs = self._step()
        if outputs:
            now = time.time()
            self._done += [(output.request_id, now) for output in outputs if output.finished]
        return outputs
