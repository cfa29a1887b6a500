"""Several teachers beside each other on a real cluster: each answers its own rows, every row once."""

import random
from pathlib import Path

import pytest

from benchmarks.echo import EchoScript, tokens_made
from services.dataset import read_rows_by_teacher
from services.prompts import make_prompt
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import Chaos, assert_exactly_once, read_completions
from tests.chaos.local import local_job, make_shards, seal_run, store
from tests.chaos.schedules import has_begun

__all__ = ["store"]  # the fixture

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]

TEACHERS = ("fast", "slow")
ROWS = 80


@pytest.mark.usefixtures("store")
def test_teachers_shards_are_committed_together_and_a_teacher_without_any_is_left_out(tmp_path: Path) -> None:
    job = local_job(tmp_path, 40, teachers=TEACHERS)
    first = make_shards(job, limit=1)
    rest = make_shards(job)
    assert (len(first), len(rest)) == (1, 5)
    assert_exactly_once(job)
    assert {name: sum(states.values()) for name, states in read_rows_by_teacher(job.completions_uri).items()} == {
        "fast": 20,
        "slow": 20,
    }
    assert seal_run(job).ledger.pending == 0
    assert make_shards(job) == []


def test_each_teacher_answers_its_own_rows_and_a_killed_replica_of_one_loses_none(chaos: Chaos) -> None:
    tallies = {name: chaos.temp / "teachers" / name for name in TEACHERS}
    for name, latency_s in zip(TEACHERS, (0.02, 0.4), strict=True):
        tallies[name].mkdir(parents=True)
        chaos.deploy(name, EchoScript(latency_s=latency_s, tally=str(tallies[name])), num_replicas=1)
    prompts = make_prompts(ROWS)
    job = DriverJob(chaos.address, "", str(chaos.temp / "teachers" / "run"), prompts, teachers=TEACHERS)
    driver = chaos.start(job)
    driver.wait_for(has_begun)
    chaos.kill_replica("slow", random.Random(0))
    assert driver.wait(150) == 0, driver.describe()
    assert_exactly_once(job)
    expected = {make_prompt(text).prompt_id: TEACHERS[number % 2] for number, text in enumerate(prompts)}
    rows = read_completions(job)
    assert {row["prompt_id"]: row["teacher"] for row in rows} == expected
    counts = read_rows_by_teacher(job.completions_uri)
    assert {name: sum(states.values()) for name, states in counts.items()} == dict.fromkeys(TEACHERS, ROWS // 2)
    # Nothing of the other teacher's was asked of the one that nobody disturbed.
    assert tokens_made(tallies["fast"]) == sum(row["num_completion_tokens"] for row in rows if row["teacher"] == "fast")
    for name in TEACHERS:
        chaos.delete(name)
