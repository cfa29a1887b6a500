"""A teacher that scales with its backlog, on a real cluster: more replicas, fewer, none, and every row once."""

import pytest

from benchmarks.echo import EchoScript, tokens_made
from configs.schema import EngineConfig, TeacherConfig
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import Chaos, assert_exactly_once, read_completions, watch

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]

NAME = "scaling"
MOST = 3


@pytest.fixture
def scaling() -> dict[str, object]:
    """The deployment's own settings, but for how long things take: a replica of the echo costs nothing."""
    from services.deployment import backlog_scaling  # imports Ray Serve

    engine = EngineConfig(max_num_seqs=100)
    options = backlog_scaling(TeacherConfig(model="echo", engine=engine, max_replicas=MOST))
    options["autoscaling_config"] |= {
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "metrics_interval_s": 1.0,
        "look_back_period_s": 2.0,
    }
    return options | {"graceful_shutdown_timeout_s": 30.0}


def test_replicas_follow_the_backlog_up_and_down_to_none_and_each_row_is_made_once(
    chaos: Chaos, scaling: dict[str, object]
) -> None:
    tally = chaos.temp / NAME / "tally"
    tally.mkdir(parents=True)
    prompts = make_prompts(700)
    job = DriverJob(
        chaos.address,
        NAME,
        str(chaos.temp / NAME),
        prompts,
        shard_rows=20,
        window_rows=12 * MOST,
        max_replicas=MOST,
        tells_backlog=True,
    )
    chaos.deploy(NAME, EchoScript(latency_s=0.5, rows_at_once=8, tally=str(tally)), scaling=scaling)
    driver = chaos.start(job)
    numbers = watch(lambda: chaos.count_replicas(NAME), lambda: driver.status is not None)
    assert driver.wait(0) == 0, driver.describe()
    assert numbers[0] == 1
    assert max(numbers) == MOST
    assert watch(lambda: chaos.count_replicas(NAME), lambda: chaos.count_replicas(NAME) == 0)[-1] == 0
    assert_exactly_once(job)
    assert tokens_made(tally) == sum(row["num_completion_tokens"] for row in read_completions(job))
    chaos.delete(NAME)
