"""The CPU teacher's replica on the real engine, in a process of its own and without Ray."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Device, EngineConfig, EngineKind, TeacherConfig
from services.engine_settings import engine_environment, engine_kwargs
from services.generation import GenerateRequest
from services.replica import ENGINE_DIED
from tests.integration.program import ROOT, end_session, environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MAX_MODEL_LEN = 64
SAYS = "answers: "  # vLLM prints lines of its own
ENGINE = EngineConfig(dtype="float32", max_model_len=MAX_MODEL_LEN)


def ask_until_the_engine_dies(model: str) -> None:
    """Print what became of three prompts, the middle one too long, and of one after them; then end the engine."""
    from services.teacher import InProcessTeacher  # not in the test's process, which needs no vLLM

    teacher = InProcessTeacher(model, engine_kwargs(TeacherConfig(model=model, engine=ENGINE), Device.CPU))

    async def ask(*prompts: list[Any]) -> None:
        batch = [GenerateRequest(str(len(each)), each, 1, 4, 0.0, 1.0, 0, (), 0) for each in prompts]
        results = [result async for group in teacher.generate(batch) for result in group]
        results.sort(key=lambda each: int(each.request_id))
        print(SAYS + json.dumps([[each.request_id, len(each.samples), each.error] for each in results]), flush=True)

    async def main() -> None:
        await ask([3] * 5, [3] * (MAX_MODEL_LEN + 1), [3] * 6)
        await ask([3] * 7)
        await ask([3] * 8, ["no token"])  # which is no refusal to vLLM, but an exception out of its depths

    asyncio.run(main())


@pytest.fixture(scope="module")
def replica(qwen3: Path) -> "subprocess.CompletedProcess[str]":
    """A replica's process from its start to the end of its engine."""
    code = "import sys; from tests.integration.test_engine import ask_until_the_engine_dies as f; f(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(qwen3)],
        cwd=ROOT,
        env=environment() | engine_environment(ENGINE, EngineKind.IN_PROCESS, Device.CPU),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=100)
        finally:
            end_session(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def answers_of(replica: "subprocess.CompletedProcess[str]") -> list[Any]:
    return [json.loads(line.removeprefix(SAYS)) for line in replica.stdout.splitlines() if line.startswith(SAYS)]


def test_prompt_that_is_too_long_fails_alone_with_vllms_sentence(replica: "subprocess.CompletedProcess[str]") -> None:
    asked_together, asked_later, *_ = answers_of(replica)
    five, six, (_, samples, reason) = asked_together
    assert [five, six, *asked_later] == [["5", 1, None], ["6", 1, None], ["7", 1, None]]
    assert samples == 0
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in reason
    assert f"{MAX_MODEL_LEN + 1} input tokens" in reason


def test_replica_whose_engine_dies_is_gone_at_once_and_tells_its_callers_nothing(
    replica: "subprocess.CompletedProcess[str]",
) -> None:
    assert replica.returncode == ENGINE_DIED, replica.stderr
    assert len(answers_of(replica)) == 2
    assert "the engine has died, and this replica ends with it\nTraceback" in replica.stderr
