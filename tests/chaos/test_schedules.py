"""Random kills of replicas, clients, nodes and drivers: every planned row is sealed once, with the undisturbed answer.

``--chaos-schedules N`` tries N of them; a failing one is replayed with ``--chaos-seed SEED --chaos-schedules 1``.
"""

import pytest

from tests.chaos.clients import FAULT_POINTS
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import Chaos, assert_exactly_once
from tests.chaos.schedules import TEACHER, Tally, deploy_teacher, run_schedule

pytestmark = pytest.mark.chaos


def test_client_dies_at_every_point_of_a_commit_and_its_rows_are_there_once(chaos: Chaos) -> None:
    deploy_teacher(chaos)
    directory = chaos.temp / "points"
    (directory / "faults").mkdir(parents=True)
    for point in FAULT_POINTS:
        (directory / "faults" / point).touch()
    job = DriverJob(chaos.address, TEACHER, str(directory), make_prompts(48), fault_dir=str(directory / "faults"))
    chaos.complete(job, timeout_s=200)
    assert list((directory / "faults").iterdir()) == []
    assert_exactly_once(job)


@pytest.mark.timeout(0)  # as many schedules as are asked for; each has a deadline of its own
def test_random_kills_lose_and_double_no_row(chaos: Chaos, pytestconfig: pytest.Config) -> None:
    deploy_teacher(chaos)
    tally, first = Tally(), pytestconfig.getoption("--chaos-seed")
    for seed in range(first, first + pytestconfig.getoption("--chaos-schedules")):
        print(f"chaos: seed {seed}", flush=True)
        run_schedule(chaos, seed, tally)
        print(f"chaos: {tally.describe()}", flush=True)
