"""The CPU teacher's replica on the real engine, in a process of its own and without Ray."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.schema import Device, EngineConfig, EngineKind, TeacherConfig
from services.engine_settings import engine_environment, engine_kwargs
from services.generation import GenerateRequest, GenerateResult
from tests.integration.program import ROOT, end_session, environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MAX_MODEL_LEN = 64
ENGINE = EngineConfig(dtype="float32", max_model_len=MAX_MODEL_LEN)


def run_here(function: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Call a function of this module in a process of its own, with a replica's environment."""
    code = f"import sys; from tests.integration.test_engine import {function} as f; f(*sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
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


def ask_with_one_too_long(model: str) -> None:
    """Print what became of three prompts, the middle one too long, and of one that was asked for afterwards."""
    from services.teacher import InProcessTeacher  # not in the test's process, which needs no vLLM

    teacher = InProcessTeacher(model, engine_kwargs(TeacherConfig(model=model, engine=ENGINE), Device.CPU))

    async def ask(lengths: Sequence[int]) -> list[GenerateResult]:
        batch = [GenerateRequest(str(each), [3] * each, 1, 4, 0.0, 1.0, 0, (), 0) for each in lengths]
        results = [result async for group in teacher.generate(batch) for result in group]
        await teacher.check_health()
        return sorted(results, key=lambda each: int(each.request_id))

    async def main() -> list[GenerateResult]:
        return [*await ask((5, MAX_MODEL_LEN + 1, 6)), *await ask((7,))]

    print(json.dumps([[each.request_id, len(each.samples), each.error] for each in asyncio.run(main())]))


def test_prompt_that_is_too_long_fails_alone_with_vllms_sentence_and_the_engine_goes_on(qwen3: Path) -> None:
    outcome = run_here("ask_with_one_too_long", qwen3)
    assert outcome.returncode == 0, outcome.stderr
    five, six, (_, samples, reason), seven = json.loads(outcome.stdout.splitlines()[-1])
    assert [five, six, seven] == [["5", 1, None], ["6", 1, None], ["7", 1, None]]
    assert samples == 0
    assert reason.startswith(f"The decoder prompt (length {MAX_MODEL_LEN + 1}) is longer than the maximum model length")
