"""Calls against a teacher that answers by a script, on a real event loop whose clock jumps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.generation import GenerateRequest, GenerateResult, Sample
from services.requester import Fault, Requester, classify
from tests.unit.services.clock import run

pytestmark = pytest.mark.unit

DEADLINE_S = 60.0
NEVER_S = 1e9


class BackPressureError(Exception):
    """Of Serve's name: the replicas' queues are full."""


class ActorDiedError(Exception):
    """Of Ray's name: the replica is gone."""


class EngineDeadError(Exception):
    """Of vLLM's name."""


@dataclass
class Call:
    """One call as the teacher saw it."""

    prompts: list[str]
    ids: list[str]
    started: float
    company: int
    cancelled: bool = False


# What to do with a call: seconds to answer in, or the error to raise. The number counts calls with these very prompts.
Script = Callable[[list[str], int], float | BaseException]


@dataclass
class ScriptedTeacher:
    """As a deployment handle's method; answers each prompt with its own name's code points."""

    script: Script
    probe: Callable[[], float | BaseException] = lambda: 0.1
    calls: list[Call] = field(default_factory=list)
    probes: list[Call] = field(default_factory=list)
    in_flight: int = 0

    def remote(self, batch: list[GenerateRequest]) -> "Reply":
        prompts = [each.request_id.rsplit("-", 1)[0] for each in batch]
        number = sum(call.prompts == prompts for call in self.calls)
        now = asyncio.get_running_loop().time()
        call = Call(prompts, [each.request_id for each in batch], now, self.in_flight)
        if not batch:
            self.probes.append(call)
            return Reply(asyncio.ensure_future(act(self.probe())), call)
        self.calls.append(call)
        self.in_flight += 1
        task = asyncio.ensure_future(self._answer(batch, prompts, number))
        task.add_done_callback(self._end)
        return Reply(task, call)

    def _end(self, _: object) -> None:
        self.in_flight -= 1

    async def _answer(self, batch: list[GenerateRequest], prompts: list[str], number: int) -> list[GenerateResult]:
        await act(self.script(prompts, number))
        return [GenerateResult(each.request_id, (answer(prompts[i]),)) for i, each in enumerate(batch)]

    @property
    def most_in_flight(self) -> int:
        return max(call.company + 1 for call in self.calls)


@dataclass
class Reply:
    """As a streaming deployment response: read once, and cancelled when nobody listens any more."""

    task: "asyncio.Task[list[GenerateResult]]"
    call: Call

    async def __aiter__(self) -> AsyncIterator[list[GenerateResult]]:
        yield await self.task

    def cancel(self) -> None:
        self.call.cancelled = True
        self.task.cancel()


async def act(outcome: float | BaseException) -> list[GenerateResult]:
    """Take the seconds that a script says, or raise its error."""
    await asyncio.sleep(1.0 if isinstance(outcome, BaseException) else outcome)
    if isinstance(outcome, BaseException):
        raise outcome
    return []


def answer(prompt: str) -> Sample:
    return Sample([ord(each) for each in prompt], "stop")


def request(prompt: str) -> GenerateRequest:
    return GenerateRequest(prompt, [1], 1, 8, 0.0, 1.0, 0, (), 0)


def complete(
    teacher: ScriptedTeacher, *calls: str, window_rows: int = 40, max_attempts: int = 3
) -> list[list[GenerateResult]]:
    """Complete all calls at once; a call is a string of one-letter prompts."""

    async def main() -> list[list[GenerateResult]]:
        requester = Requester(teacher, window_rows=window_rows, deadline_s=DEADLINE_S, max_attempts=max_attempts)
        return list(await asyncio.gather(*(requester.complete([request(each) for each in call]) for call in calls)))

    return run(main())


def answered(results: list[GenerateResult]) -> str:
    """Prompts whose samples came back, in order; a failed one is a dot."""
    return "".join("." if each.error else "".join(map(chr, each.samples[0].token_ids)) for each in results)


def errors(results: list[GenerateResult]) -> set[str]:
    return {each.error for each in results if each.error}


def test_complete_gives_every_request_its_own_result_in_order() -> None:
    teacher = ScriptedTeacher(lambda prompts, _: {"a": 9.0, "d": 1.0}[prompts[0]])
    assert [answered(each) for each in complete(teacher, "abc", "de")] == ["abc", "de"]
    assert [call.prompts for call in teacher.calls] == [["a", "b", "c"], ["d", "e"]]


def test_complete_keeps_at_most_a_window_of_rows_in_flight() -> None:
    teacher = ScriptedTeacher(lambda prompts, _: float(ord(prompts[0]) % 3 + 1))
    results = complete(teacher, *"abcdefghij", window_rows=3)
    assert "".join(map(answered, results)) == "abcdefghij"
    assert teacher.most_in_flight == 3


def test_complete_call_of_an_older_shard_that_is_made_again_passes_those_that_wait() -> None:
    teacher = ScriptedTeacher(lambda prompts, number: BackPressureError() if (prompts, number) == (["a"], 0) else 1.0)

    async def main() -> None:
        requester = Requester(teacher, window_rows=1, deadline_s=DEADLINE_S, max_attempts=3)
        await asyncio.gather(*(requester.complete([request(each)], place) for place, each in enumerate("abcdef")))

    run(main())
    assert [call.prompts[0] for call in teacher.calls] == ["a", "b", "a", "c", "d", "e", "f"]


def test_complete_tells_of_each_result_when_it_comes() -> None:
    teacher = Trickle(lambda *_: 0.0)
    told: list[tuple[str, float]] = []

    async def main() -> None:
        requester = Requester(teacher, window_rows=4, deadline_s=DEADLINE_S, max_attempts=3)
        clock = asyncio.get_running_loop().time
        await requester.complete(
            [request(each) for each in "abc"], 0, lambda each: told.append((each.request_id, clock()))
        )

    run(main())
    assert told == [("a", pytest.approx(1.0)), ("b", pytest.approx(2.0)), ("c", pytest.approx(3.0))]


def test_complete_refusal_of_one_prompt_is_its_result_and_no_retry() -> None:
    class Refusing(ScriptedTeacher):
        async def _answer(self, batch: list[GenerateRequest], *_: Any) -> list[GenerateResult]:
            return [GenerateResult(each.request_id, error="too long") for each in batch]

    teacher = Refusing(lambda *_: 0.0)
    assert complete(teacher, "a") == [[GenerateResult("a", error="too long")]]
    assert len(teacher.calls) == 1


def test_complete_busy_teacher_is_waited_for_however_long() -> None:
    teacher = ScriptedTeacher(lambda _, number: BackPressureError("full") if number < 200 else 1.0)
    [results] = complete(teacher, "ab", max_attempts=1)
    assert answered(results) == "ab"
    assert len(teacher.calls) == 201
    pauses = [later.started - call.started for call, later in zip(teacher.calls, teacher.calls[1:], strict=False)]
    assert pauses[0] < 2
    assert min(pauses[10:]) > 5  # it is asked ever more rarely
    assert max(pauses) < 20


def test_complete_late_reply_is_cancelled_and_asked_for_again() -> None:
    teacher = ScriptedTeacher(lambda _, number: NEVER_S if number == 0 else 1.0)
    [results] = complete(teacher, "ab")
    assert answered(results) == "ab"
    assert [call.cancelled for call in teacher.calls] == [True, False]
    assert teacher.calls[1].started >= DEADLINE_S
    assert teacher.in_flight == 0


def test_complete_teacher_that_times_out_itself_is_late() -> None:
    teacher = ScriptedTeacher(lambda _, number: TimeoutError("engine") if number == 0 else 1.0)
    [results] = complete(teacher, "a")
    assert answered(results) == "a"


def test_complete_rows_that_are_always_late_fail_with_the_deadline() -> None:
    teacher = ScriptedTeacher(lambda prompts, _: NEVER_S if "b" in prompts else 1.0)
    first, other = complete(teacher, "abc", "x", max_attempts=3)
    assert answered(first) == "..."
    assert [each.request_id for each in first] == ["a", "b", "c"]
    assert errors(first) == {"deadline: no answer in 3 times 60 s"}
    assert [call.cancelled for call in teacher.calls if "b" in call.prompts] == [True] * 3
    assert answered(other) == "x"


@pytest.mark.parametrize("silence", [NEVER_S, BackPressureError("full"), ActorDiedError("gone")])
def test_complete_rows_do_not_fail_while_the_teacher_answers_nobody(silence: float | BaseException) -> None:
    """Late replies of a teacher that does not answer a call without rows either are not the rows' fault."""
    teacher = ScriptedTeacher(lambda _, number: NEVER_S if number < 10 else 1.0, probe=lambda: silence)
    [results] = complete(teacher, "ab", max_attempts=2)
    assert answered(results) == "ab"
    assert len(teacher.calls) == 11


def test_complete_fault_of_the_teacher_found_while_rows_are_late_travels() -> None:
    teacher = ScriptedTeacher(lambda *_: NEVER_S, probe=lambda: ValueError("bad argument"))
    with pytest.raises(ValueError, match="bad argument"):
        complete(teacher, "a")


def test_complete_gives_every_attempt_other_ids() -> None:
    """An attempt that was given up may still run in the engine, which refuses an id that it knows."""
    teacher = ScriptedTeacher(lambda _, number: [NEVER_S, BackPressureError(), ActorDiedError(), 1.0][number])
    complete(teacher, "ab")
    ids = [request_id for call in teacher.calls for request_id in call.ids]
    assert len(ids) == len(set(ids)) == 8


@pytest.mark.parametrize("error", [ActorDiedError("gone"), EngineDeadError("gone")])
def test_complete_lost_replica_is_tried_elsewhere(error: Exception) -> None:
    teacher = ScriptedTeacher(lambda _, number: error if number == 0 else 1.0)
    first, second = complete(teacher, "ab", "c")
    assert answered(first) + answered(second) == "abc"
    assert [call.prompts for call in teacher.calls].count(["a", "b"]) == 2


def poison(letters: str) -> Script:
    """Any call with one of these prompts ends its replica, and with it every call in flight would."""
    return lambda prompts, _: ActorDiedError("gone") if set(prompts) & set(letters) else 1.0


def test_complete_poison_is_cut_out_of_its_call() -> None:
    teacher = ScriptedTeacher(poison("c"))
    [results] = complete(teacher, "abcdefgh")
    assert answered(results) == "ab.defgh"
    [error] = errors(results)
    assert error.startswith("poison: the replica died 2 times")


def test_complete_poison_is_found_by_halves() -> None:
    call = "".join(chr(ord("A") + number) for number in range(32))
    teacher = ScriptedTeacher(poison(call[-1]))
    assert answered(complete(teacher, call)[0]) == f"{call[:-1]}."
    assert len(teacher.calls) < 16  # each death costs a replica's start


@pytest.mark.parametrize("error", [ActorDiedError("gone"), EngineDeadError("gone")])
def test_complete_teacher_that_is_gone_for_a_while_fails_no_row(error: Exception) -> None:
    def state() -> float | BaseException:
        return error if asyncio.get_running_loop().time() < started[0] + 30 else 1.0

    started: list[float] = []

    def script(*_: object) -> float | BaseException:
        started or started.append(asyncio.get_running_loop().time())
        return state()

    results = complete(ScriptedTeacher(script, probe=state), *"abcdefgh", window_rows=3)
    assert "".join(map(answered, results)) == "abcdefgh"


def test_complete_row_that_meets_a_dead_engine_time_and_again_does_not_fail() -> None:
    """Of two replicas one has no engine left, and is chosen ever again, as its queue is the shortest."""
    teacher = ScriptedTeacher(lambda _, number: EngineDeadError("gone") if number < 9 else 1.0)
    assert answered(complete(teacher, "a")[0]) == "a"


def test_complete_deaths_count_only_where_the_teacher_has_answered_in_between() -> None:
    """Two in company do; then it is gone when the call would be tried alone, and dies four times as it starts."""
    answers = [True, True, *[False] * 5]

    def probe() -> float | BaseException:
        return 0.1 if not answers or answers.pop(0) else ActorDiedError("gone")

    teacher = ScriptedTeacher(lambda _, number: ActorDiedError("gone") if number < 8 else 1.0, probe)
    assert answered(complete(teacher, "a")[0]) == "a"
    assert len(teacher.calls) == 9


def test_complete_two_poisons_and_nothing_else_fail() -> None:
    teacher = ScriptedTeacher(poison("ag"))
    assert answered(complete(teacher, "abcdefgh")[0]) == ".bcdef.h"


def test_complete_call_that_died_twice_is_tried_with_nothing_else_in_flight() -> None:
    """While three others keep the window full with one call after another."""
    teacher = ScriptedTeacher(
        lambda prompts, _: ActorDiedError("gone") if "p" in prompts else 1.0 + ord(prompts[0]) % 7 / 4
    )

    async def work(requester: Requester, letters: str) -> str:
        return "".join([answered(await requester.complete([request(each)])) for each in letters])

    async def main() -> list[Any]:
        requester = Requester(teacher, window_rows=3, deadline_s=DEADLINE_S, max_attempts=3)
        workers = [work(requester, letters) for letters in ("abcdefgh", "ABCDEFGH", "01234567")]
        return await asyncio.gather(requester.complete([request("p"), request("q")]), *workers)

    suspect, *others = run(main())
    assert answered(suspect) == ".q"
    assert others == ["abcdefgh", "ABCDEFGH", "01234567"]
    calls = [call for call in teacher.calls if "p" in call.prompts]
    assert max(call.company for call in calls[:2]) > 0
    assert len(calls) == 5  # twice in company, once alone with q, twice by itself
    for alone in calls[2:]:
        assert alone.company == 0
        assert not any(alone.started < call.started < alone.started + 0.9 for call in teacher.calls)
    assert teacher.calls[-1] not in calls  # the others go on afterwards


def test_complete_bystanders_of_a_poison_are_cleared() -> None:
    """One replica: whatever is in flight when the poison strikes is lost with it."""

    class OneReplica(ScriptedTeacher):
        async def _answer(self, batch: list[GenerateRequest], prompts: list[str], number: int) -> list[GenerateResult]:
            incarnation = self.incarnation
            await asyncio.sleep(1.0)
            if "p" in prompts:
                self.incarnation = object()
            if incarnation is not self.incarnation:
                raise ActorDiedError("gone")
            return await super()._answer(batch, prompts, number)

        incarnation: object = None

    results = complete(OneReplica(lambda *_: 0.0), "ap", "bc", "de", "fg", window_rows=8)
    assert [answered(each) for each in results] == ["a.", "bc", "de", "fg"]


def test_complete_window_is_whole_again_after_an_isolation() -> None:
    teacher = ScriptedTeacher(poison("p"))

    async def main() -> list[list[GenerateResult]]:
        requester = Requester(teacher, window_rows=3, deadline_s=DEADLINE_S, max_attempts=3)
        first = await requester.complete([request("p")])
        return [first, *await asyncio.gather(*(requester.complete([request(each)]) for each in "abcdef"))]

    assert "".join(map(answered, run(main()))) == ".abcdef"
    assert teacher.most_in_flight == 3


@pytest.mark.parametrize("error", [ValueError("bad argument"), RuntimeError("ended by the engine: abort")])
def test_complete_error_of_any_other_kind_travels(error: Exception) -> None:
    teacher = ScriptedTeacher(lambda *_: error)
    with pytest.raises(type(error), match=str(error)):
        complete(teacher, "a")
    assert len(teacher.calls) == 1


def test_complete_error_of_any_other_kind_travels_out_of_an_isolation() -> None:
    def fail_third(_: list[str], number: int) -> float | BaseException:
        return [ActorDiedError(), ActorDiedError(), ValueError("bad argument"), 1.0][number]

    with pytest.raises(ValueError, match="bad argument"):
        complete(ScriptedTeacher(fail_third), "a")


def test_complete_late_reply_under_isolation_is_asked_for_again() -> None:
    outcomes = [ActorDiedError(), ActorDiedError(), NEVER_S, BackPressureError(), 1.0]
    teacher = ScriptedTeacher(lambda _, number: outcomes[number])
    [results] = complete(teacher, "a")
    assert answered(results) == "a"
    assert [call.cancelled for call in teacher.calls] == [False, False, True, False, False]


def test_complete_that_is_cancelled_cancels_its_call_and_frees_the_window() -> None:
    teacher = ScriptedTeacher(lambda prompts, _: NEVER_S if prompts == ["a"] else 1.0)

    async def main() -> list[GenerateResult]:
        requester = Requester(teacher, window_rows=1, deadline_s=DEADLINE_S, max_attempts=3)
        task = asyncio.ensure_future(requester.complete([request("a")]))
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await requester.complete([request("b")])

    assert answered(run(main())) == "b"
    assert [call.cancelled for call in teacher.calls] == [True, False]


def test_complete_busy_teacher_is_waited_for_even_a_thousand_times() -> None:
    teacher = ScriptedTeacher(lambda _, number: BackPressureError("full") if number < 1100 else 1.0)
    assert answered(complete(teacher, "a")[0]) == "a"


def test_classify_knows_rays_own_errors() -> None:
    """By their names, so that a release of Ray that renames one is noticed here."""
    from ray import exceptions

    assert classify(exceptions.ActorDiedError()) is Fault.LOST
    assert classify(exceptions.ActorUnavailableError("busy network", b"0" * 16)) is Fault.LOST
    assert classify(exceptions.WorkerCrashedError()) is Fault.LOST
    assert classify(exceptions.NodeDiedError("gone")) is Fault.LOST
    assert classify(exceptions.GetTimeoutError("late")) is Fault.LATE
    assert classify(exceptions.TaskCancelledError()) is None


@pytest.mark.parametrize(
    ("cause", "fault"), [(EngineDeadError("gone"), Fault.BUSY), (TimeoutError(), Fault.LATE), (ValueError("bad"), None)]
)
def test_classify_sees_through_what_ray_wraps_around_a_replicas_error(cause: Exception, fault: Fault | None) -> None:
    from ray.exceptions import RayTaskError

    assert classify(RayTaskError("generate", "traceback", cause).as_instanceof_cause()) is fault


def test_classify_replica_that_ran_out_of_memory_is_lost() -> None:
    from ray.exceptions import OutOfMemoryError

    assert classify(OutOfMemoryError("worker killed")) is Fault.LOST


@dataclass
class Trickle(ScriptedTeacher):
    """Gives the results of a call one by one, a second apart; of the first call ``dies_after`` of them at most."""

    dies_after: int = 10**6

    async def _answer(self, batch: list[GenerateRequest], prompts: list[str], number: int) -> list[GenerateResult]:
        raise AssertionError("read by rows")

    def remote(self, batch: list[GenerateRequest]) -> Any:
        if not batch:
            return super().remote(batch)
        prompts = [each.request_id.rsplit("-", 1)[0] for each in batch]
        call = Call(prompts, [each.request_id for each in batch], asyncio.get_running_loop().time(), self.in_flight)
        self.calls.append(call)
        return TrickleReply(self, batch, call, self.dies_after if len(self.calls) == 1 else 10**6)


@dataclass
class TrickleReply:
    teacher: Trickle
    batch: list[GenerateRequest]
    call: Call
    dies_after: int

    async def __aiter__(self) -> AsyncIterator[list[GenerateResult]]:
        for number, each in enumerate(self.batch):
            if number == self.dies_after:
                raise ActorDiedError("gone")
            self.teacher.in_flight += 1
            await asyncio.sleep(1.0)
            self.teacher.in_flight -= 1
            yield [GenerateResult(each.request_id, (answer(self.call.prompts[number]),))]

    def cancel(self) -> None:
        self.call.cancelled = True


def test_complete_keeps_what_came_back_before_a_replica_died() -> None:
    teacher = Trickle(lambda *_: 0.0, dies_after=3)
    [results] = complete(teacher, "abcde")
    assert answered(results) == "abcde"
    assert [call.prompts for call in teacher.calls] == [["a", "b", "c", "d", "e"], ["d", "e"]]


def test_complete_rows_that_came_back_make_room_for_the_next_call() -> None:
    """The first call's last row is slow, and the second begins all the same when two rows of the first are done."""
    teacher = Trickle(lambda *_: 0.0)
    complete(teacher, "abcd", "ef", window_rows=4)
    assert [call.started for call in teacher.calls] == [0.0, pytest.approx(2.0)]


def test_complete_call_that_ends_without_some_of_its_rows_is_a_fault_of_the_run() -> None:
    class Forgetful(ScriptedTeacher):
        async def _answer(self, batch: list[GenerateRequest], *_: Any) -> list[GenerateResult]:
            return [GenerateResult(each.request_id, (answer("x"),)) for each in batch[1:]]

    with pytest.raises(RuntimeError, match="without an answer to 1 of its 3 prompts"):
        complete(Forgetful(lambda *_: 0.0), "abc")


def test_complete_slow_call_at_the_end_is_asked_for_elsewhere_too() -> None:
    """Its replica hangs; without a second one the rows would wait for the deadline."""
    slow = "z"
    teacher = ScriptedTeacher(lambda prompts, number: NEVER_S if slow in prompts and number == 0 else 1.0)

    async def main() -> tuple[str, float]:
        requester = Requester(teacher, window_rows=4, deadline_s=DEADLINE_S, max_attempts=3, hedge=True)
        letters = f"abcdefgh{slow}"
        results = await asyncio.gather(*(requester.complete([request(each)]) for each in letters))
        return "".join(map(answered, results)), asyncio.get_running_loop().time()

    results, seconds = run(main())
    assert results == "abcdefghz"
    assert seconds < DEADLINE_S / 4
    assert [call.cancelled for call in teacher.calls if slow in call.prompts] == [True, False]
    assert teacher.in_flight == 0


@pytest.mark.parametrize(("hedge", "others"), [(False, 0), (True, 3)])
def test_complete_is_not_asked_twice_without_another_replica_or_while_others_are_in_flight(
    hedge: bool, others: int
) -> None:
    teacher = ScriptedTeacher(lambda prompts, _: 1.0 if prompts[0] < "n" else 20.0)

    async def main() -> None:
        requester = Requester(teacher, window_rows=4, deadline_s=DEADLINE_S, max_attempts=3, hedge=hedge)
        letters = "abcdefgh" + "wxyz"[: 1 + others]
        await asyncio.gather(*(requester.complete([request(each)]) for each in letters))

    run(main())
    assert len(teacher.calls) == 9 + others


def test_complete_hedged_call_that_ends_first_with_a_fault_waits_for_the_other() -> None:
    outcomes = [20.0, ActorDiedError("gone")]
    teacher = ScriptedTeacher(lambda prompts, number: outcomes[number] if prompts == ["z"] else 1.0)

    async def main() -> list[GenerateResult]:
        requester = Requester(teacher, window_rows=4, deadline_s=DEADLINE_S, max_attempts=3, hedge=True)
        *_, last = await asyncio.gather(*(requester.complete([request(each)]) for each in "abcdefghz"))
        return last

    assert answered(run(main())) == "z"
    assert sum(call.prompts == ["z"] for call in teacher.calls) == 2


@dataclass
class QueueingTeacher:
    """One replica that works on so many rows at a time, first come, first served, each for ``row_s`` seconds.

    What ``is_lost`` says of is never answered, as by an engine that has lost it. Never busy, never dead.
    """

    slots: int
    row_s: float
    is_lost: Callable[[str], bool] = lambda _: False
    calls: int = 0
    cancelled_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = asyncio.Semaphore(self.slots)

    def remote(self, batch: list[GenerateRequest]) -> Any:
        self.calls += bool(batch)
        return QueueingReply(self, [asyncio.ensure_future(self._answer(each)) for each in batch])

    async def _answer(self, request: GenerateRequest) -> GenerateResult:
        if self.is_lost(request.request_id):
            await asyncio.sleep(NEVER_S)
        async with self.free:
            await asyncio.sleep(self.row_s)
        return GenerateResult(request.request_id, (answer("x"),))


@dataclass
class QueueingReply:
    teacher: QueueingTeacher
    rows: "list[asyncio.Task[GenerateResult]]"

    async def __aiter__(self) -> AsyncIterator[list[GenerateResult]]:
        for row in asyncio.as_completed(self.rows):
            yield [await row]

    def cancel(self) -> None:
        self.teacher.cancelled_at.append(asyncio.get_running_loop().time())
        for row in self.rows:
            row.cancel()


def ask_queue(teacher: Callable[[], QueueingTeacher], calls: int, window_rows: int) -> tuple[list[str | None], int]:
    """Errors of so many calls of four rows, all at once, and how often the teacher was asked."""

    async def main() -> tuple[list[str | None], int]:
        made = teacher()
        requester = Requester(made, window_rows=window_rows, deadline_s=DEADLINE_S, max_attempts=2)
        batches = [[request(f"{number:03d}{row}") for row in "abcd"] for number in range(calls)]
        done = await asyncio.gather(*(requester.complete(batch) for batch in batches))
        return [result.error for results in done for result in results], made.calls

    return run(main())


def test_complete_rows_that_wait_for_others_at_a_slow_teacher_are_not_late() -> None:
    """A window for eight replicas, of which one is up: a row waits for two and a half deadlines until its turn."""
    errors, asked = ask_queue(lambda: QueueingTeacher(slots=16, row_s=DEADLINE_S / 3), calls=64, window_rows=8 * 16)
    assert errors == [None] * 256
    assert asked == 64  # and no half-written row was given up


def test_complete_row_that_the_engine_has_lost_fails_with_the_deadline_while_others_are_answered() -> None:
    """The teacher sends rows all the time, so only the row's own turn can tell."""
    lost = "007c"
    errors, asked = ask_queue(
        lambda: QueueingTeacher(slots=16, row_s=5.0, is_lost=lambda sent_id: sent_id.startswith(lost)),
        calls=800,
        window_rows=24,
    )
    assert [number for number, error in enumerate(errors) if error] == [4 * 7 + 2]
    assert errors[4 * 7 + 2] == "deadline: no answer in 2 times 60 s"
    assert asked == 801


def test_complete_row_is_with_the_engine_for_one_deadline_at_the_most_once_its_turn_has_come() -> None:
    """The first rows of a window have nobody before them but those that are sent with them."""
    made = list[QueueingTeacher]()

    def make() -> QueueingTeacher:
        made.append(QueueingTeacher(16, 5.0, lambda sent_id: sent_id.startswith("000a")))
        return made[0]

    ask_queue(make, calls=400, window_rows=16)
    assert DEADLINE_S <= made[0].cancelled_at[0] < 1.5 * DEADLINE_S


def test_complete_keeps_the_window_that_it_was_told_last() -> None:
    teacher = ScriptedTeacher(lambda *_: 1.0)

    async def main() -> list[int]:
        requester = Requester(teacher, window_rows=2, deadline_s=DEADLINE_S, max_attempts=3)
        rows = [asyncio.ensure_future(requester.complete([request(each)])) for each in "abcdefghijklmnopqrst"]
        in_flight = []
        for window_rows in (2, 6, 3):
            requester.resize(window_rows)
            await asyncio.sleep(1.2)
            in_flight.append(teacher.in_flight)
        await asyncio.gather(*rows)
        return in_flight

    assert run(main()) == [2, 6, 3]
    assert teacher.most_in_flight == 6


def test_complete_call_that_is_tried_alone_stays_alone_when_the_window_grows() -> None:
    teacher = ScriptedTeacher(lambda prompts, _: ActorDiedError("gone") if prompts == ["p"] else 1.0)

    async def work(requester: Requester, letters: str) -> str:
        return "".join([answered(await requester.complete([request(each)])) for each in letters])

    async def grow(requester: Requester) -> None:
        for window_rows in range(3, 60):
            requester.resize(window_rows)
            await asyncio.sleep(0.3)

    async def main() -> list[Any]:
        requester = Requester(teacher, window_rows=3, deadline_s=DEADLINE_S, max_attempts=3)
        workers = [work(requester, letters) for letters in ("abcdefgh", "ABCDEFGH", "01234567")]
        return await asyncio.gather(requester.complete([request("p")]), *workers, grow(requester))

    suspect, *others, _ = run(main())
    assert answered(suspect) == "."
    assert others == ["abcdefgh", "ABCDEFGH", "01234567"]
    alone = [call for call in teacher.calls if call.prompts == ["p"]][2:]
    assert len(alone) == 2
    for each in alone:
        assert each.company == 0
        assert not any(each.started < call.started < each.started + 0.9 for call in teacher.calls)
