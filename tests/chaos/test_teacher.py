"""Faults of the teacher on a real cluster: poison, hangs, late and refused calls, no replica, two commands at once."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.echo import EchoScript, tokens_made
from services.dataset import seal
from tests.chaos.clients import POISON, REFUSED
from tests.chaos.driver import STOPPED, DriverJob, make_prompts
from tests.chaos.harness import Chaos, assert_exactly_once, read_completions
from tests.chaos.schedules import has_begun
from tests.chaos.teacher import EngineTeacher, LingeringTeacher

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]


@pytest.fixture
def job(chaos: Chaos, request: pytest.FixtureRequest) -> Iterator[DriverJob]:
    """A run and the name of a teacher of its own, which is gone afterwards."""
    name = request.node.name.replace("[", "-").rstrip("]")
    yield DriverJob(chaos.address, name, str(chaos.temp / name), make_prompts(40))
    chaos.delete(name)


def changed(job: DriverJob, **values: object) -> DriverJob:
    return DriverJob(**{**{name: getattr(job, name) for name in job.__slots__}, **values})


def test_poison_is_found_and_everything_else_is_answered(chaos: Chaos, job: DriverJob) -> None:
    job = changed(job, prompts=(*make_prompts(20), f"a{POISON}", *make_prompts(24)[20:], REFUSED))
    script = EchoScript(die_on_token=ord(POISON), refuse_token=ord(REFUSED))
    chaos.deploy(job.app_name, script, num_replicas=2)
    chaos.complete(job, timeout_s=200)
    failed = {row["prompt"].strip('"'): row["reason"] for row in read_completions(job) if row["status"] == "failed"}
    assert failed.pop(REFUSED) == "the echo refuses this prompt"
    assert failed.pop(f"a{POISON}").startswith("poison: ")
    assert failed == {}
    ledger = seal(job.prompts_uri, job.completions_uri, 1).ledger
    assert (ledger.planned, ledger.failed, ledger.pending) == (26, 2, 0)


def test_hanging_and_late_calls_are_made_again(chaos: Chaos, job: DriverJob) -> None:
    job = changed(job, request_deadline_s=3.0)
    chaos.deploy(job.app_name, EchoScript(hang_at_calls=(2, 5), late_at_calls=(3,)), num_replicas=2)
    chaos.complete(job)
    assert_exactly_once(job)


def test_replicas_that_die_while_answering_cost_only_what_was_in_flight(chaos: Chaos, job: DriverJob) -> None:
    job, tally = changed(job, prompts=make_prompts(200)), Path(job.run_dir) / "tally"
    tally.mkdir(parents=True)
    chaos.deploy(job.app_name, EchoScript(die_at_calls=(20,), latency_s=0.05, tally=str(tally)), num_replicas=2)
    chaos.complete(job)
    assert_exactly_once(job)
    rows = read_completions(job)
    sealed = sum(row["num_completion_tokens"] for row in rows)
    deaths = len(list(tally.iterdir())) - 2
    assert deaths > 0
    assert tokens_made(tally) - sealed <= deaths * job.window_rows * sealed / len(rows)


@pytest.mark.parametrize(("teacher", "num_replicas"), [(EngineTeacher, 2), (LingeringTeacher, 1)])
def test_engine_that_dies_inside_its_replica_is_replaced_and_fails_no_row(
    chaos: Chaos, job: DriverJob, teacher: type[EngineTeacher], num_replicas: int
) -> None:
    chaos.deploy(job.app_name, EchoScript(latency_s=0.15), num_replicas=num_replicas, teacher=teacher)
    job = changed(job, prompts=make_prompts(240))
    driver = chaos.start(job)
    driver.wait_for(has_begun)
    assert chaos.kill_engine(job.app_name, random.Random(0))
    assert driver.wait(150) == 0, driver.describe()
    assert_exactly_once(job)


def test_silent_teacher_is_reported_then_stops_the_run_with_a_sentence_and_fails_no_row(
    chaos: Chaos, job: DriverJob
) -> None:
    chaos.deploy(job.app_name, EchoScript(hang_at_calls=tuple(range(1, 1000))), num_replicas=1)
    stuck = changed(job, request_deadline_s=60.0, no_progress_s=20.0)
    driver = chaos.start(stuck)
    assert driver.wait(100) == STOPPED, driver.describe()
    *_, stopped = driver.events()
    assert "(deadlines.no_progress)" in stopped["why"]
    silences = [event for event in driver.events() if event["event"] == "silence"]
    assert (silences[0]["silent_s"], silences[0]["shards"]) == (2.0, 5)
    assert stopped["at"] - silences[0]["at"] > 10
    chaos.deploy(job.app_name, EchoScript(), num_replicas=1)
    chaos.complete(job)
    assert_exactly_once(job)


def test_command_whose_teacher_hangs_stops_when_a_later_one_has_claimed_the_run(chaos: Chaos, job: DriverJob) -> None:
    chaos.deploy(job.app_name, EchoScript(hang_at_calls=tuple(range(1, 1000))), num_replicas=1)
    stuck = changed(job, request_deadline_s=200.0, no_progress_s=100.0)
    earlier = chaos.start(stuck)
    earlier.wait_for(lambda events: any(event["event"] == "silence" for event in events))
    later = chaos.start(stuck)
    assert earlier.wait(60) == STOPPED, earlier.describe()
    assert "a later command works on this run" in earlier.events()[-1]["why"]
    later.kill()
    chaos.deploy(job.app_name, EchoScript(), num_replicas=1)
    chaos.complete(job)
    assert_exactly_once(job)


def test_later_of_two_commands_goes_on_and_the_earlier_says_why_it_stops(chaos: Chaos, job: DriverJob) -> None:
    chaos.deploy(job.app_name, EchoScript(latency_s=0.3), num_replicas=2)
    job = changed(job, prompts=make_prompts(240), window_rows=8)
    earlier = chaos.start(job)
    earlier.wait_for(has_begun)
    later = chaos.start(job)
    assert earlier.wait(150) == STOPPED, earlier.describe()
    assert "a later command works on this run" in earlier.events()[-1]["why"]
    assert later.wait(150) == 0, later.describe()
    assert_exactly_once(job)


def test_two_commands_at_the_same_moment_make_every_row_once(chaos: Chaos, job: DriverJob) -> None:
    chaos.deploy(job.app_name, EchoScript(latency_s=0.1), num_replicas=2)
    commands = [chaos.start(job), chaos.start(job)]
    statuses = sorted(command.wait(150) for command in commands)
    assert statuses[0] == 0, [command.describe() for command in commands]
    assert statuses[1] in (0, STOPPED), [command.describe() for command in commands]
    assert_exactly_once(job)
