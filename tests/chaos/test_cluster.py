"""The whole cluster dies, its head included, while a run is under way; the same command resumes on a fresh one."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.echo import EchoScript
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import assert_exactly_once, chaos_cluster
from tests.chaos.schedules import has_begun

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(280)]

TEACHER = "head"


def test_cluster_dies_with_its_head_and_the_same_command_resumes_on_another(tmp_path: Path) -> None:
    job = DriverJob("", TEACHER, str(tmp_path), make_prompts(160))
    with chaos_cluster() as first:
        first.deploy(TEACHER, EchoScript(latency_s=0.3))
        driver = first.start(replace(job, address=first.address))
        driver.wait_for(has_begun)
        first.kill_cluster()
        assert driver.wait(100) != 0, driver.describe()
    with chaos_cluster() as second:
        second.deploy(TEACHER, EchoScript())
        second.complete(replace(job, address=second.address))
    assert_exactly_once(job)
