"""Keys, rates, ledger, regions and signals by themselves."""

import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from configs.gateway import GatewayConfig, RegionsConfig, SignalAction, SignalsConfig, Stance
from services.gateway.admission import Admission, Grant
from services.gateway.keys import KeyFile, hash_key, make_key
from services.gateway.ledger import Ledger, Usage
from services.gateway.rates import MINUTE_S, MinuteWindow
from services.gateway.regions import Origin, find_origin, may_ask
from services.gateway.signals import (
    Observation,
    cadence_variation,
    elicitation_share,
    keys_of,
    observe,
    templated_share,
)
from tests.unit.services.gateway.gateway import NOW, Clock, add_key, make_spec, visit

pytestmark = pytest.mark.unit


def test_key_file_holds_hashes_alone_and_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, key = make_key("ada", NOW, models=("a",))
    KeyFile(path).add(key)
    assert secret not in path.read_text()
    assert hash_key(secret) in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert KeyFile(path).find(secret) == key
    assert sorted(each.name for each in tmp_path.iterdir()) == [".keys.json.lock", "keys.json"]


def test_key_name_counts_once_until_it_is_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add(make_key("ada", NOW)[1])
    with pytest.raises(UserError, match="a key ada already"):
        file.add(make_key("ada", NOW)[1])
    assert file.revoke("ada", NOW).revoked is not None
    file.add(make_key("ada", NOW)[1])
    with pytest.raises(UserError, match="no key bob to revoke; those that count are: ada"):
        file.revoke("bob", NOW)


def test_no_key_that_is_added_and_no_revocation_is_lost_to_another_command(tmp_path: Path) -> None:
    path, commands = tmp_path / "keys.json", 12
    for number in range(commands):
        KeyFile(path).add(make_key(f"old{number}", NOW)[1])
    together = threading.Barrier(2 * commands)

    def change(number: int) -> None:
        together.wait(10)
        if number % 2:
            KeyFile(path).add(make_key(f"new{number // 2}", NOW)[1])
        else:
            KeyFile(path).revoke(f"old{number // 2}", NOW)

    with ThreadPoolExecutor(2 * commands) as pool:
        list(pool.map(change, range(2 * commands)))
    counting = {each.name for each in KeyFile(path).all() if each.revoked is None}
    assert counting == {f"new{number}" for number in range(commands)}


def test_change_of_keys_does_not_wait_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    KeyFile(path).add(make_key("ada", NOW)[1])
    with open(tmp_path / ".keys.json.lock", "r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another command has been changing .*keys\.json for 0\.1 s; let it end"):
            KeyFile(path, lock_s=0.1).revoke("ada", NOW)
    assert KeyFile(path).revoke("ada", NOW).revoked is not None


def test_broken_key_file_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": [{"name": "ada"}]}')
    with pytest.raises(UserError, match=r"keys\.json is not a file of keys"):
        KeyFile(tmp_path / "keys.json").all()


@given(
    limit=st.integers(1, 20),
    arrivals=st.lists(st.tuples(st.floats(0.0, 40.0), st.integers(1, 8)), max_size=60),
)
def test_no_sixty_seconds_see_more_than_the_limit(limit: int, arrivals: list[tuple[float, int]]) -> None:
    window, now, let_in = MinuteWindow(limit), 0.0, list[tuple[float, int]]()
    for gap, amount in arrivals:
        now += gap
        wait_s = window.wait_for(now, amount)
        if wait_s == 0:
            window.add(now, amount)
            let_in.append((now, amount))
        elif amount <= limit:
            assert window.wait_for(now + wait_s, amount) == 0  # the wait that is told is enough
            now += wait_s
        for start, _ in let_in:
            assert sum(each for at, each in let_in if start <= at < start + MINUTE_S) <= limit


@given(
    quota=st.integers(0, 100),
    steps=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60), st.booleans()), max_size=30),
)
def test_used_and_reserved_never_exceed_the_quota(
    tmp_path_factory: pytest.TempPathFactory, quota: int, steps: list[tuple[int, int, bool]]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")
    open_ones: list[tuple[int, int]] = []
    for tokens, used, is_settled in steps:
        if (reservation := ledger.reserve("ada", tokens, quota)) is not None:
            open_ones.append((reservation, used))
        if is_settled and open_ones:
            assert ledger.settle(*open_ones.pop(0))
        usage = ledger.usage("ada")
        assert usage.reserved >= 0
        assert usage.used + usage.reserved <= quota
    ledger.close()


def test_reservations_of_a_process_that_died_are_charged_in_full(tmp_path: Path) -> None:
    before = Ledger(tmp_path / "ledger.sqlite")
    reservation = before.reserve("ada", 40, 100)
    assert reservation is not None
    before.close()
    after = Ledger(tmp_path / "ledger.sqlite")
    assert after.charge_leftovers() == 1
    assert after.usage("ada") == Usage(used=40, requests=1)
    assert not after.settle(reservation, 1)  # a replica that outlived the process, too late
    assert after.reserve("ada", 61, 100) is None
    assert after.reserve("ada", 60, 100) is not None
    after.close()


def test_quota_holds_across_restarts_of_the_admission(tmp_path: Path) -> None:
    secret, clock = add_key(tmp_path / "g", lifetime_tokens=50), Clock()
    spec = make_spec(tmp_path / "g", GatewayConfig())
    for used in (20, 30, None):
        admission = Admission(spec, clock=clock.monotonic, now=clock.now)
        assert admission.admit(secret, visit()) is None
        grant = admission.reserve(secret, visit(max_tokens=20), 0)
        if used is not None:
            assert isinstance(grant, Grant)
            admission.settle(grant, used, "completed")
        else:
            assert not isinstance(grant, Grant)
            assert grant.code == "insufficient_quota"
        admission.close()


@pytest.mark.parametrize(
    ("peer", "forwarded", "address", "country"),
    [
        ("10.0.0.1", "203.0.113.7", "203.0.113.7", "DE"),
        ("10.0.0.1", "6.6.6.6, 203.0.113.7, 10.0.0.2", "203.0.113.7", "DE"),  # the client wrote the first
        ("10.0.0.1", "", "10.0.0.1", "DE"),
        ("203.0.113.9", "6.6.6.6", "203.0.113.9", None),
        ("", "6.6.6.6", "", None),
    ],
)
def test_origin_is_what_trusted_proxies_say(peer: str, forwarded: str, address: str, country: str | None) -> None:
    headers = {"x-forwarded-for": forwarded, "x-country": "de"}
    assert find_origin(peer, headers, ("10.0.0.0/8",), "X-Country") == Origin(address, country)


def test_region_lists_and_what_holds_for_others() -> None:
    closed = RegionsConfig(header="X", allow=("DE",), deny=("KP",), others=Stance.DENY)
    assert [may_ask(each, closed) for each in ("DE", "KP", "FR", None)] == [True, False, False, False]
    opened = closed.model_copy(update={"others": Stance.ALLOW})
    assert [may_ask(each, opened) for each in ("DE", "KP", "FR", None)] == [True, False, True, True]
    assert may_ask(None, RegionsConfig())


def observations(prompts: list[str], gap_s: float = 1.0) -> list[Observation]:
    return [observe(prompt, place * gap_s) for place, prompt in enumerate(prompts)]


def test_templates_are_found_at_either_end_and_talk_is_not() -> None:
    fronts = observations([f"Solve this problem and give the result: {word} {word}" for word in "abcdef"])
    backs = observations([f"{word} is a number. Say all that you know of it." for word in ("one", "two", "ten")])
    numbers = observations([f"What is {number} plus {number}?" for number in range(6)])
    talk = observations(["Good morning", "What is an osprey?", "Thanks, and its nest?", "How do they fish then?"])
    assert [templated_share(each) for each in (fronts, backs, numbers)] == [1.0, 1.0, 1.0]
    assert templated_share(talk) == 0.25
    assert templated_share([]) == 0.0


def test_cadence_is_zero_for_a_clock_and_more_for_people() -> None:
    assert cadence_variation(observations(["x"] * 10, 3.0)) == 0.0
    people = [Observation(at, "", "", False) for at in (0.0, 2.0, 40.0, 43.0, 200.0, 201.0)]
    assert cadence_variation(people) > 1.0
    assert cadence_variation(observations(["x"])) == 1.0


@pytest.mark.parametrize(
    ("prompt", "elicits"),
    [
        ("Think step by step, then answer.", True),
        ("Show your reasoning", True),
        ("Reveal your hidden thought process", True),
        ("Begin with <think>", True),
        ("What are the steps of a waltz?", False),
        ("Give me your opinion", False),
    ],
)
def test_elicitation_of_reasoning_is_told_from_questions(prompt: str, elicits: bool) -> None:
    assert elicitation_share([observe(prompt, 0.0)]) == float(elicits)


def test_keys_of_an_address_are_counted_once_each() -> None:
    assert keys_of("a", [("a", "1"), ("a", "1"), ("a", "2"), ("b", "3")]) == 2


@pytest.mark.parametrize("action", SignalAction)
def test_signals_are_recorded_and_block_only_where_the_recipe_says_so(tmp_path: Path, action: SignalAction) -> None:
    clock, recorded = Clock(), list[tuple[str, float, str]]()
    secret = add_key(tmp_path / "g")
    config = GatewayConfig(signals=SignalsConfig(action=action, min_requests=3))
    admission = Admission(
        make_spec(tmp_path / "g", config),
        lambda name, value, tags: recorded.append((name, value, next(iter(tags.values())))),
        clock=clock.monotonic,
        now=clock.now,
    )
    answers = []
    for _ in range(3):
        clock.seconds += 5.0
        answers.append(admission.admit(secret, visit(prompt="Think step by step: 1")))
    admission.close()
    signals = {tag for name, _, tag in recorded if name == "signals"}
    assert signals == {"templated_prompts", "machine_cadence", "reasoning_elicitation"}
    assert '"event":"signals"' in (tmp_path / "g" / "audit.jsonl").read_text()
    assert [each is None for each in answers] == [True, True, action is SignalAction.OBSERVE]


def test_many_keys_of_one_address_are_shared_infrastructure(tmp_path: Path) -> None:
    recorded: list[str] = []
    config = GatewayConfig(signals=SignalsConfig(keys_per_address=3))
    secrets = [add_key(tmp_path / "g", f"key{number}") for number in range(3)]
    admission = Admission(make_spec(tmp_path / "g", config), lambda _, __, tags: recorded.extend(tags.values()))
    for secret in secrets:
        assert admission.admit(secret, visit()) is None
    admission.close()
    assert recorded == ["shared_infrastructure"]
