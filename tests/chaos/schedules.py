"""Random schedules of kills: a seed decides the run and what dies when; the same seed is the same schedule.

A schedule goes on until its run is sealed. Several go on beside each other on one cluster, each with a teacher of its
own; only a node's death is everybody's. What was killed and what it cost is added up over all schedules.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.echo import EchoScript, tokens_made
from tests.chaos.clients import FAULT_POINTS
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import Chaos, Driver, assert_exactly_once, read_completions

LATENCY_S = 0.06
SCHEDULE_S = 120.0  # a schedule that takes longer hangs
AT_ONCE = 2  # schedules; the processes of one start while another's wait
MOST_KILLS = 4
LONGEST_PAUSE_S = 1.5
KILLS = ("replica", "engine", "client", "node", "driver")
VICTIMS = (*KILLS, *FAULT_POINTS)
WEIGHTS = (4, 3, 3, 1, 2, *(1 for _ in FAULT_POINTS))
KILLED = -9
NODES_EVERY_S = 0.5  # a dead one is replaced


@dataclass(slots=True)
class Tally:
    """What all schedules together did."""

    schedules: int = 0
    rows: int = 0
    tokens: int = 0
    tokens_again: int = 0
    kills: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Add up."""
        self.schedules += other.schedules
        self.rows += other.rows
        self.tokens += other.tokens
        self.tokens_again += other.tokens_again
        self.kills += other.kills

    @property
    def share_again(self) -> float:
        """Tokens that a kill makes be made again, of the tokens of a run."""
        return self.tokens_again / max(1, self.kills.total()) / max(1, self.tokens / max(1, self.schedules))

    def describe(self) -> str:
        """One line for people."""
        kills = ", ".join(f"{number} {what}" for what, number in sorted(self.kills.items()))
        return (
            f"{self.schedules} schedules, {self.rows} rows, {self.kills.total()} kills ({kills}); 0 lost, 0 doubled; "
            f"{self.tokens} tokens sealed, {self.tokens_again} made again "
            f"({self.share_again:.2%} of a run's tokens a kill)"
        )


def run_schedules(chaos: Chaos, seeds: list[int]) -> Iterator[tuple[int, Tally]]:
    """Run one schedule a seed; yields the seed and what was done as each has been sealed and checked."""
    slots = SimpleQueue[str]()
    for number in range(min(AT_ONCE, len(seeds))):
        teacher = f"echo{number}"
        tally = tally_directory(chaos, teacher)
        tally.mkdir()
        chaos.deploy(teacher, EchoScript(latency_s=LATENCY_S, tally=str(tally)))
        slots.put(teacher)

    def run(seed: int) -> Tally:
        teacher = slots.get()
        try:
            return _run_schedule(chaos, teacher, seed)
        except BaseException as error:
            error.add_note(f"replay: --chaos-seed {seed} --chaos-schedules 1")
            raise
        finally:
            slots.put(teacher)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(run, seed): seed for seed in seeds}
        try:
            while running:
                done, _ = wait(running, timeout=NODES_EVERY_S, return_when=FIRST_COMPLETED)
                chaos.restore_nodes()
                yield from ((running.pop(each), each.result()) for each in done)
        finally:
            pool.shutdown(cancel_futures=True)


def tally_directory(chaos: Chaos, teacher: str) -> Path:
    """Where a teacher notes every token that it makes."""
    return chaos.temp / f"tally-{teacher}"


def _run_schedule(chaos: Chaos, teacher: str, seed: int) -> Tally:
    rng, made_before = random.Random(seed), tokens_made(tally_directory(chaos, teacher))
    job = _draw_job(chaos, rng, teacher, seed)
    give_up_at = time.monotonic() + SCHEDULE_S
    command, kills = _Command(chaos, job), Counter[str]()
    armed = set()
    for _ in range(rng.randint(1, MOST_KILLS)):
        victim, pause = rng.choices(VICTIMS, WEIGHTS)[0], rng.uniform(0, LONGEST_PAUSE_S)
        if not command.wait_until_begun(pause):
            break
        if victim in FAULT_POINTS:
            (Path(job.fault_dir) / victim).touch()
            armed.add(victim)
        else:
            kills[victim] += command.kill(victim, rng)
    command.finish(give_up_at)
    # A fault that was never reached is no kill.
    kills += Counter(point for point in armed if not (Path(job.fault_dir) / point).exists())
    assert_exactly_once(job)
    rows = read_completions(job)
    tokens = sum(row["num_completion_tokens"] for row in rows)
    again = tokens_made(tally_directory(chaos, teacher)) - made_before - tokens
    return Tally(1, len(rows), tokens, again, kills)


def _draw_job(chaos: Chaos, rng: random.Random, teacher: str, seed: int) -> DriverJob:
    directory = chaos.temp / f"run-{seed}"
    (directory / "faults").mkdir(parents=True)
    return DriverJob(
        address=chaos.address,
        app_name=teacher,
        run_dir=str(directory),
        prompts=make_prompts(rng.randint(400, 800)),
        samples=rng.randint(1, 3),
        shard_rows=rng.choice((6, 8, 12)),
        rows_per_call=rng.choice((2, 4)),
        window_rows=rng.choice((8, 12)),
        clients=rng.randint(1, 2),
        fault_dir=str(directory / "faults"),
    )


class _Command:
    """The run's command, which is given again whenever its driver was killed."""

    def __init__(self, chaos: Chaos, job: DriverJob) -> None:
        self._chaos, self._job = chaos, job
        self._driver: Driver = chaos.start(job)

    def wait_until_begun(self, pause_s: float) -> bool:
        """Wait for a first shard, and a little longer; False when there is nothing left to be killed."""
        self._driver.wait_for(has_begun)
        time.sleep(pause_s)
        if self._driver.status == KILLED:
            self._driver = self._chaos.start(self._job)
            return self.wait_until_begun(pause_s)
        return self._driver.status is None

    def kill(self, victim: str, rng: random.Random) -> bool:
        """False when there was no such process."""
        match victim:
            case "replica":
                return self._chaos.kill_replica(self._job.app_name, rng)
            case "engine":
                return self._chaos.kill_engine(self._job.app_name, rng)
            case "client":
                return self._chaos.kill_client(self._job.fault_dir, rng)
            case "node":
                return self._chaos.kill_node(rng)
        self._driver.kill()
        self._driver = self._chaos.start(self._job)
        return True

    def finish(self, give_up_at: float) -> None:
        """Give the command until it ends by itself."""
        while self._driver.wait(give_up_at - time.monotonic()) == KILLED:
            self._driver = self._chaos.start(self._job)
        assert self._driver.status == 0, self._driver.describe()


def has_begun(events: list[dict[str, Any]]) -> bool:
    """Whether a shard has been made."""
    return any(event["event"] == "shard" for event in events)
