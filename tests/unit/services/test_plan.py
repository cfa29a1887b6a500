"""Shards are cut once: planning again only adds, and two that plan at once cannot both add."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from deltalake import DeltaTable

from configs.errors import UserError
from configs.table import PROMPTS_SCHEMA
from services.plan import extend_plan, read_plan, read_shard
from services.prompts import Prompt
from services.table import shard_files
from tests.unit.services.shards import DEADLINE_S, make_plan, make_prompts, planned_ids

pytestmark = pytest.mark.unit


def ids(prompts: list[Prompt]) -> list[str]:
    return [each.prompt_id for each in prompts]


def file_bytes(uri: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in uri.glob("*.parquet")}


def test_plan_cuts_prompts_into_shards_in_their_order(tmp_path: Path) -> None:
    prompts = make_prompts(10)
    plan = make_plan(tmp_path / "prompts", prompts, shard_rows=4)
    assert (plan.num_shards, plan.num_prompts, plan.num_rows, plan.new_prompts, plan.duplicates) == (3, 10, 10, 10, 0)
    assert planned_ids(tmp_path / "prompts") == [ids(prompts[:4]), ids(prompts[4:8]), ids(prompts[8:])]


def test_plan_shard_is_of_one_teacher_and_says_so(tmp_path: Path) -> None:
    prompts = [replace(each, teacher="ab"[n % 3 > 0]) for n, each in enumerate(make_prompts(10))]
    plan = make_plan(tmp_path / "prompts", prompts, shard_rows=4)
    assert (plan.num_shards, plan.num_prompts) == (3, 10)
    files = list(shard_files(DeltaTable(str(tmp_path / "prompts"))))
    assert [(file.teacher, file.num_rows) for file in files] == [("b", 4), ("a", 4), ("b", 2)]
    planned = {
        row: file.teacher for file, rows in zip(files, planned_ids(tmp_path / "prompts"), strict=True) for row in rows
    }
    assert planned == {each.prompt_id: each.teacher for each in prompts}


def test_plan_of_one_teacher_names_none(tmp_path: Path) -> None:
    make_plan(tmp_path / "prompts", make_prompts(3))
    assert [file.teacher for file in shard_files(DeltaTable(str(tmp_path / "prompts")))] == [None]


def test_plan_shard_holds_the_prompts_as_they_were_read(tmp_path: Path) -> None:
    prompts = [*make_prompts(1), Prompt("f" * 32, '{"line": "x"}', error="a.jsonl:2: is not JSON")]
    make_plan(tmp_path / "prompts", prompts)
    [file] = shard_files(DeltaTable(str(tmp_path / "prompts")))
    rows = read_shard(str(tmp_path / "prompts"), file.path)
    assert rows.schema.equals(PROMPTS_SCHEMA)
    assert [Prompt(r["prompt_id"], r["prompt"], r["answer"], r["error"]) for r in rows.to_pylist()] == prompts
    assert rows.column("shard").to_pylist() == [0, 0]


@pytest.mark.parametrize(
    ("samples", "shard_rows", "prompts_per_shard"), [(1, 4, 4), (2, 4, 2), (3, 8, 2), (4, 4, 1), (9, 4, 1)]
)
def test_plan_shard_rows_count_samples(tmp_path: Path, samples: int, shard_rows: int, prompts_per_shard: int) -> None:
    plan = make_plan(tmp_path / "prompts", make_prompts(6), samples=samples, shard_rows=shard_rows)
    assert plan.num_rows == 6 * samples
    assert plan.num_shards == -(-6 // prompts_per_shard)
    assert all(len(shard) <= prompts_per_shard for shard in planned_ids(tmp_path / "prompts"))


def test_plan_leaves_duplicates_out_and_counts_them(tmp_path: Path) -> None:
    prompts = make_prompts(5)
    plan = make_plan(tmp_path / "prompts", [prompts[0], *prompts, prompts[3]], shard_rows=2)
    assert (plan.num_prompts, plan.new_prompts, plan.duplicates) == (5, 5, 2)
    assert list(chain.from_iterable(planned_ids(tmp_path / "prompts"))) == ids(prompts)


def test_plan_again_adds_nothing_whatever_the_order(tmp_path: Path) -> None:
    prompts = make_prompts(10)
    make_plan(tmp_path / "prompts", prompts)
    version, before = DeltaTable(str(tmp_path / "prompts")).version(), file_bytes(tmp_path / "prompts")
    plan = make_plan(tmp_path / "prompts", prompts[::-1])
    assert (plan.num_prompts, plan.new_prompts, plan.duplicates) == (10, 0, 0)
    assert DeltaTable(str(tmp_path / "prompts")).version() == version
    assert file_bytes(tmp_path / "prompts") == before


def test_plan_of_more_prompts_adds_only_them_as_further_shards(tmp_path: Path) -> None:
    uri, prompts = tmp_path / "prompts", make_prompts(12)
    make_plan(uri, prompts[:6], shard_rows=4)
    before, shards = file_bytes(uri), planned_ids(uri)
    mixed = [prompts[11], *prompts[:3], *prompts[6:11], *prompts[3:6]]
    plan = make_plan(uri, mixed, shard_rows=4)
    assert (plan.num_shards, plan.num_prompts, plan.new_prompts) == (4, 12, 6)
    assert planned_ids(uri) == [*shards, ids([prompts[11], *prompts[6:9]]), ids(prompts[9:11])]
    assert [file.shard for file in shard_files(DeltaTable(str(uri)))] == [0, 1, 2, 3]
    assert {name: content for name, content in file_bytes(uri).items() if name in before} == before


def test_plan_of_fewer_prompts_takes_none_away(tmp_path: Path) -> None:
    make_plan(tmp_path / "prompts", make_prompts(6))
    plan = make_plan(tmp_path / "prompts", make_prompts(2))
    assert (plan.num_prompts, plan.new_prompts, plan.duplicates) == (6, 0, 0)


def test_plan_of_no_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompts"):
        make_plan(tmp_path / "prompts", [])


def test_plan_that_another_process_extended_meanwhile_is_refused(tmp_path: Path) -> None:
    uri, prompts = tmp_path / "prompts", make_prompts(8)

    def read_slowly() -> Iterator[Prompt]:
        yield from prompts[:4]
        make_plan(uri, prompts[4:])  # the other process is quicker

    with pytest.raises(UserError, match="another process planned the same run"):
        extend_plan(str(uri), read_slowly(), samples_per_prompt=1, shard_rows=4, commit_deadline_s=DEADLINE_S)
    assert planned_ids(uri) == [ids(prompts[4:])]
    plan = make_plan(uri, prompts)  # the same command again
    assert (plan.num_prompts, plan.new_prompts) == (8, 4)
    assert sorted(chain.from_iterable(planned_ids(uri))) == sorted(ids(prompts))


def test_plan_that_breaks_off_plans_nothing(tmp_path: Path) -> None:
    def read_and_break() -> Iterator[Prompt]:
        yield from make_prompts(9)
        raise UserError("a.jsonl:10: is not JSON")

    with pytest.raises(UserError, match=r"a\.jsonl:10"):
        extend_plan(
            str(tmp_path / "prompts"),
            read_and_break(),
            samples_per_prompt=1,
            shard_rows=4,
            commit_deadline_s=DEADLINE_S,
        )
    assert read_plan(str(tmp_path / "prompts"), 1).num_prompts == 0
    assert make_plan(tmp_path / "prompts", make_prompts(9)).new_prompts == 9
