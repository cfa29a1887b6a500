"""Random schedules of kills: a seed decides the run and what dies when; the same seed is the same schedule.

A schedule goes on until its run is sealed. What was killed and what it cost is added up over all schedules.
"""

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.echo import EchoScript, tokens_made
from tests.chaos.clients import FAULT_POINTS
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import Chaos, Driver, assert_exactly_once, read_completions

TEACHER = "echo"
LATENCY_S = 0.15
SCHEDULE_S = 120.0  # a schedule that takes longer hangs
MOST_KILLS = 4
LONGEST_PAUSE_S = 1.5
VICTIMS = ("replica", "client", "node", "driver", *FAULT_POINTS)
WEIGHTS = (4, 3, 1, 2, 1, 1, 1, 1, 1)


@dataclass(slots=True)
class Tally:
    """What all schedules together did."""

    schedules: int = 0
    rows: int = 0
    tokens: int = 0
    tokens_again: int = 0
    kills: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """One line for people."""
        kills = ", ".join(f"{number} {what}" for what, number in sorted(self.kills.items()))
        share = self.tokens_again / max(1, self.kills.total()) / max(1, self.tokens / max(1, self.schedules))
        return (
            f"{self.schedules} schedules, {self.rows} rows, {self.kills.total()} kills ({kills}); 0 lost, 0 doubled; "
            f"{self.tokens} tokens sealed, {self.tokens_again} made again ({share:.2%} of a run's tokens a kill)"
        )


def deploy_teacher(chaos: Chaos) -> None:
    """The echo that all schedules ask, with a note of every token that it makes."""
    _tally_directory(chaos).mkdir(exist_ok=True)
    chaos.deploy(TEACHER, EchoScript(latency_s=LATENCY_S, tally=str(_tally_directory(chaos))))


def run_schedule(chaos: Chaos, seed: int, tally: Tally) -> None:
    """Run one schedule to its seal and check every row of it."""
    rng = random.Random(seed)
    job = _draw_job(chaos, rng, seed)
    before, made_before = Counter(chaos.kills), tokens_made(_tally_directory(chaos))
    give_up_at = time.monotonic() + SCHEDULE_S
    driver, armed = chaos.start(job), set()
    for _ in range(rng.randint(1, MOST_KILLS)):
        victim, pause = rng.choices(VICTIMS, WEIGHTS)[0], rng.uniform(0, LONGEST_PAUSE_S)
        driver.wait_for(_has_begun)
        time.sleep(pause)
        if driver.process.poll() is not None:
            break
        if victim in FAULT_POINTS:
            (Path(job.fault_dir) / victim).touch()
            armed.add(victim)
        else:
            driver = _kill(chaos, job, driver, victim, rng)
    assert driver.wait(give_up_at - time.monotonic()) == 0, f"seed {seed}: {driver.describe()}"
    # A fault that was never reached is no kill.
    chaos.kills += Counter(point for point in armed if not (Path(job.fault_dir) / point).exists())
    assert_exactly_once(job)
    rows = read_completions(job)
    tokens = sum(row["num_completion_tokens"] for row in rows)
    tally.schedules += 1
    tally.rows += len(rows)
    tally.tokens += tokens
    tally.tokens_again += tokens_made(_tally_directory(chaos)) - made_before - tokens
    tally.kills += chaos.kills - before


def _draw_job(chaos: Chaos, rng: random.Random, seed: int) -> DriverJob:
    directory = chaos.temp / f"run-{seed}"
    (directory / "faults").mkdir(parents=True)
    return DriverJob(
        address=chaos.address,
        app_name=TEACHER,
        run_dir=str(directory),
        prompts=make_prompts(rng.randint(80, 240)),
        samples=rng.randint(1, 3),
        shard_rows=rng.choice((6, 8, 12)),
        rows_per_call=rng.choice((2, 4)),
        window_rows=rng.choice((8, 12)),
        clients=rng.randint(1, 2),
        fault_dir=str(directory / "faults"),
    )


def _has_begun(events: list[dict[str, Any]]) -> bool:
    return any(event["event"] == "shard" for event in events)


def _kill(chaos: Chaos, job: DriverJob, driver: Driver, victim: str, rng: random.Random) -> Driver:
    """Returns the driver that is at work from then on."""
    match victim:
        case "replica":
            chaos.kill_replica(rng)
        case "client":
            chaos.kill_client(rng)
        case "node":
            chaos.kill_node(rng)
        case "driver":
            driver.kill()
            chaos.kills["driver"] += 1
            return chaos.start(job)
    return driver


def _tally_directory(chaos: Chaos) -> Path:
    return chaos.temp / "tally"
