"""Random kills of replicas, engines, clients, nodes and drivers: each planned row is sealed once, with its answer.

``--chaos-schedules N`` tries N of them; a failing one is replayed with ``--chaos-seed SEED --chaos-schedules 1``.
"""

import time

import pytest

from benchmarks.echo import EchoScript
from tests.chaos.clients import CLIENT_FILE, CLIENT_POINTS, DRIVER_POINTS
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import Chaos, assert_exactly_once
from tests.chaos.schedules import KILLED, Tally, run_schedules

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(280)
def test_client_and_driver_die_at_every_point_of_a_commit_and_rows_are_there_once(chaos: Chaos) -> None:
    chaos.deploy("points", EchoScript())
    faults = chaos.temp / "points" / "faults"
    faults.mkdir(parents=True)
    job = DriverJob(chaos.address, "points", str(faults.parent), make_prompts(48), fault_dir=str(faults))
    for point in DRIVER_POINTS:
        (faults / point).touch()
        driver = chaos.start(job)
        assert driver.wait(100) == KILLED, driver.describe()
    for point in CLIENT_POINTS:
        (faults / point).touch()
    chaos.complete(job, timeout_s=200)
    assert [file.name for file in faults.iterdir() if file.stem != CLIENT_FILE] == []
    assert_exactly_once(job)


@pytest.mark.timeout(0)  # as many schedules as are asked for; each has a deadline of its own
def test_random_kills_lose_and_double_no_row(chaos: Chaos, pytestconfig: pytest.Config) -> None:
    tally, first, started = Tally(), pytestconfig.getoption("--chaos-seed"), time.monotonic()
    seeds = list(range(first, first + pytestconfig.getoption("--chaos-schedules")))
    for seed, done in run_schedules(chaos, seeds):
        tally.add(done)
        print(f"chaos: seed {seed}; after {time.monotonic() - started:.0f} s {tally.describe()}", flush=True)
