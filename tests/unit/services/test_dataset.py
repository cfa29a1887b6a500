"""The ledger balances, pending shards are what is missing, and only a complete table is sealed."""

import hashlib
import tempfile
from itertools import chain
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from configs.table import COMPLETIONS_SCHEMA, RowStatus
from services.dataset import (
    NAMED_IDS,
    Ledger,
    count_rows,
    pending_shards,
    read_ledger,
    read_rows_by_teacher,
    seal,
)
from services.table import open_or_create, shard_files
from tests.unit.services.shards import (
    commit_plan,
    commit_rows,
    make_plan,
    make_prompts,
    make_row,
    make_rows,
    planned_ids,
)

pytestmark = pytest.mark.unit

SAMPLES = 2


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Ten prompts of two samples each, in shards of three prompts."""
    make_plan(tmp_path / "prompts", make_prompts(10), samples=SAMPLES, shard_rows=6)
    return tmp_path / "prompts"


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    open_or_create(str(tmp_path / "completions"), COMPLETIONS_SCHEMA, "completions")
    return tmp_path / "completions"


def refusal(prompts: Path, completions: Path) -> str:
    with pytest.raises(UserError) as error:
        seal(str(prompts), str(completions), SAMPLES)
    return str(error.value)


@settings(max_examples=12)
@given(
    shards=st.lists(st.lists(st.sampled_from(RowStatus), min_size=1, max_size=5), max_size=3),
    pending=st.integers(0, 10),
)
def test_ledger_balances_over_every_mixture_of_states(shards: list[list[RowStatus]], pending: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        uri = Path(directory)
        open_or_create(str(uri), COMPLETIONS_SCHEMA, "completions")
        for shard, states in enumerate(shards):
            commit_rows(uri, [make_row(str(n), 0, shard, state) for n, state in enumerate(states)], shard)
        states = list(chain.from_iterable(shards))
        ledger = read_ledger(str(uri), len(states) + pending)
    assert ledger.to_dict() == {
        "planned": len(states) + pending,
        "accepted": states.count(RowStatus.ACCEPTED),
        "rejected": states.count(RowStatus.REJECTED),
        "failed": states.count(RowStatus.FAILED),
        "pending": pending,
    }


@given(*[st.integers(0, 10**12)] * 4)
def test_ledger_parts_add_up_to_what_is_planned(accepted: int, rejected: int, failed: int, pending: int) -> None:
    counts = Ledger(accepted + rejected + failed + pending, accepted, rejected, failed).to_dict()
    assert counts["pending"] == pending
    assert counts.pop("planned") == sum(counts.values())


def test_ledger_is_read_from_the_log_alone(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES)
    for file in completions.glob("*.parquet"):
        file.unlink()
    assert read_ledger(str(completions), 20) == Ledger(planned=20, accepted=20, rejected=0, failed=0)


def test_rows_of_each_teacher_are_counted_from_the_log(tmp_path: Path) -> None:
    uri = tmp_path / "completions"
    commit_rows(uri, [make_row("a" * 32), make_row("b" * 32, status=RowStatus.FAILED)], 0, "small")
    commit_rows(uri, make_rows(["c" * 32, "d" * 32], samples=2, shard=1), 1, "large")
    commit_rows(uri, [make_row("e" * 32, shard=2, status=RowStatus.REJECTED)], 2, "small")
    assert read_rows_by_teacher(str(uri)) == {
        "large": {"accepted": 4, "rejected": 0, "failed": 0},
        "small": {"accepted": 1, "rejected": 1, "failed": 1},
    }


def test_count_rows_of_one_shard_leaves_the_others_out(completions: Path) -> None:
    commit_rows(completions, [make_row("a"), make_row("b", 0, 0, RowStatus.FAILED)], 0)
    commit_rows(completions, [make_row("c", 0, 1, RowStatus.REJECTED)], 1)
    first, second = shard_files(DeltaTable(str(completions)))
    assert count_rows(first) == {"accepted": 1, "rejected": 0, "failed": 1}
    assert count_rows(second) == {"accepted": 0, "rejected": 1, "failed": 0}


def test_pending_shards_are_the_planned_ones_without_completions(prompts: Path, completions: Path) -> None:
    def pending() -> list[int]:
        return [file.shard for file in pending_shards(str(prompts), str(completions))]

    assert pending() == [0, 1, 2, 3]
    commit_plan(prompts, completions, SAMPLES, skip=[0, 3])
    assert pending() == [0, 3]
    paths = {file.shard: file.path for file in pending_shards(str(prompts), str(completions))}
    assert all((prompts / path).exists() for path in paths.values())


def test_pending_shards_ignore_files_that_were_never_committed(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES)
    (completions / "shard-000000-of-a-crash.parquet").write_text("half")
    assert list(pending_shards(str(prompts), str(completions))) == []


def test_seal_pins_version_ledger_and_digests(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES, skip=[1])
    first, *rest = planned_ids(prompts)[1]
    rows = make_rows(rest, SAMPLES, 1) + [
        make_row(first, n, 1, state) for n, state in enumerate([RowStatus.REJECTED, RowStatus.FAILED])
    ]
    commit_rows(completions, rows, 1)
    sealed = seal(str(prompts), str(completions), SAMPLES)
    assert sealed.version == DeltaTable(str(completions)).version()
    assert sealed.ledger == Ledger(planned=20, accepted=18, rejected=1, failed=1)
    assert [file.num_rows for file in sealed.files] == [6, 6, 6, 2]
    for file in sealed.files:
        assert file.sha256 == hashlib.sha256((completions / file.path).read_bytes()).hexdigest()
    assert sealed.to_dict()["files"][0]["sha256"] == sealed.files[0].sha256
    assert sealed.to_dict()["ledger"]["pending"] == 0


def test_seal_rows_may_lie_in_any_order(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES, skip=[2])
    commit_rows(completions, make_rows(planned_ids(prompts)[2], SAMPLES, 2)[::-1], 2)
    assert seal(str(prompts), str(completions), SAMPLES).ledger.pending == 0


def test_seal_shard_that_is_not_made_is_refused(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES, skip=[2])
    message = refusal(prompts, completions)
    assert "shard 2 (6 rows, [('" in message
    assert "stillhouse generate" in message


@pytest.mark.parametrize("drop", ["sample", "prompt"])
def test_seal_missing_row_is_refused_with_its_id(prompts: Path, completions: Path, drop: str) -> None:
    commit_plan(prompts, completions, SAMPLES, skip=[1])
    lost = planned_ids(prompts)[1][1]
    rows = [
        row
        for row in make_rows(planned_ids(prompts)[1], SAMPLES, 1)
        if row.prompt_id != lost or (drop == "sample" and row.sample_index == 0)
    ]
    commit_rows(completions, rows, 1)
    message = refusal(prompts, completions)
    assert "shard 1" in message
    assert f"rows missing: {[(lost, 0), (lost, 1)] if drop == 'prompt' else [(lost, 1)]}" in message


def test_seal_doubled_row_is_refused_with_its_id(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES, skip=[1])
    rows = make_rows(planned_ids(prompts)[1], SAMPLES, 1)
    commit_rows(completions, [*rows, rows[3]], 1)
    message = refusal(prompts, completions)
    assert f"rows doubled: {[(rows[3].prompt_id, rows[3].sample_index)]}" in message


@pytest.mark.parametrize("extra", [make_row("e" * 32, 0, 1), None])
def test_seal_row_that_was_not_planned_is_refused_with_its_id(prompts: Path, completions: Path, extra: object) -> None:
    """A prompt of no plan, or one sample too many."""
    commit_plan(prompts, completions, SAMPLES, skip=[1])
    planned = planned_ids(prompts)[1]
    stranger = extra or make_row(planned[0], SAMPLES, 1)
    commit_rows(completions, [*make_rows(planned, SAMPLES, 1), stranger], 1)
    message = refusal(prompts, completions)
    assert f"rows not planned: {[(stranger.prompt_id, stranger.sample_index)]}" in message


def test_seal_row_of_another_shard_is_refused(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES, skip=[0, 1])
    first, second = planned_ids(prompts)[:2]
    commit_rows(completions, make_rows([*first[1:], second[0]], SAMPLES, 0), 0)
    commit_rows(completions, make_rows([*second[1:], first[0]], SAMPLES, 1), 1)
    assert first[0] in refusal(prompts, completions)


def test_seal_shard_that_is_there_twice_is_refused(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES)
    commit_rows(completions, make_rows(planned_ids(prompts)[1], SAMPLES, 1), 1)
    message = refusal(prompts, completions)
    assert "shard 1 is there twice" in message
    assert planned_ids(prompts)[1][0] in message


def test_seal_names_a_few_ids_and_not_all(tmp_path: Path, completions: Path) -> None:
    make_plan(tmp_path / "prompts", make_prompts(40), samples=SAMPLES, shard_rows=80)
    [planned] = planned_ids(tmp_path / "prompts")
    commit_rows(completions, make_rows(planned[:1], SAMPLES), 0)
    message = refusal(tmp_path / "prompts", completions)
    assert sum(prompt_id in message for prompt_id in planned) == -(-NAMED_IDS // SAMPLES)


def test_seal_shard_that_was_not_planned_is_refused(prompts: Path, completions: Path) -> None:
    commit_plan(prompts, completions, SAMPLES)
    commit_rows(completions, make_rows(["e" * 32], SAMPLES, 9), 9)
    assert "shards [9] are of another plan" in refusal(prompts, completions)
