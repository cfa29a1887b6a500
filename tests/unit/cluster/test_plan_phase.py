"""PLAN and SEAL as phases: done once, done again when the source has grown, and no cluster for either."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run_command
from cluster.context import RunContext
from cluster.phases.plan import plan
from cluster.phases.seal import seal_dataset
from cluster.progress import Progress
from cluster.run_dir import RunDir
from configs.errors import UserError
from configs.schema import RunConfig
from configs.table import RowStatus
from tests.unit.configs.trees import TREE, make_config, put
from tests.unit.services.shards import commit_plan, commit_rows, make_row, planned_ids

pytestmark = pytest.mark.unit


def write_prompts(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"prompt": f"{n}+{n}=", "answer": 2 * n}) + "\n" for n in range(count)))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run on a file of six prompts, in shards of four rows."""
    write_prompts(tmp_path / "prompts.jsonl", 6)
    return make_config(
        run_dir=str(tmp_path / "run"),
        prompts={"source": str(tmp_path / "prompts.jsonl")},
        generation__shard_rows=4,
    )


@pytest.fixture
def ctx(config: RunConfig) -> Iterator[RunContext]:
    run_dir = RunDir.of(config)
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        yield ctx
        assert not ctx.has_session


def paths(ctx: RunContext) -> tuple[Path, Path]:
    return Path(ctx.run_dir.prompts_uri), Path(ctx.run_dir.completions_uri)


def with_config(ctx: RunContext, **changed: Any) -> RunContext:
    return RunContext(ctx.config.model_copy(update=changed), ctx.run_dir, ctx.progress)


def test_plan_records_what_there_is_to_do(ctx: RunContext) -> None:
    record = plan(ctx)
    assert (record["prompts"], record["rows"], record["shards"], record["duplicates"]) == (6, 6, 2, 0)
    assert record["transfer"] == "token_ids"  # the student starts with its teacher's tokenizer
    assert ctx.run_dir.phase_record("plan") == record


def test_plan_of_an_unchanged_source_is_done_already(ctx: RunContext, capsys: pytest.CaptureFixture[str]) -> None:
    first = plan(ctx)
    capsys.readouterr()
    assert plan(ctx) == first
    assert capsys.readouterr().err == ""


def test_plan_of_a_source_that_has_grown_adds_shards(ctx: RunContext) -> None:
    plan(ctx)
    prompts, _ = paths(ctx)
    before = planned_ids(prompts)
    write_prompts(Path(str(ctx.config.prompts.source)), 9)
    record = plan(ctx)
    assert (record["prompts"], record["shards"]) == (9, 3)
    assert planned_ids(prompts)[:2] == before


def test_plan_with_held_out_problems_among_the_prompts_is_refused(ctx: RunContext, tmp_path: Path) -> None:
    write_prompts(tmp_path / "held-out.jsonl", 2)
    evaluation = make_config(evaluation={"source": str(tmp_path / "held-out.jsonl")}).evaluation
    with pytest.raises(UserError, match="evaluation: 2 of its 2 problems are training prompts"):
        plan(with_config(ctx, evaluation=evaluation))
    assert ctx.run_dir.phase_record("plan") is None


def test_plan_with_a_held_out_problem_without_an_answer_is_refused(ctx: RunContext, tmp_path: Path) -> None:
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "what?"}\n')
    evaluation = make_config(evaluation={"source": str(tmp_path / "held-out.jsonl")}).evaluation
    with pytest.raises(UserError, match=r"each problem needs an answer, and '\"what\?\"' has none"):
        plan(with_config(ctx, evaluation=evaluation))


def test_plan_of_addition_holds_its_evaluation_apart(ctx: RunContext) -> None:
    addition = make_config(evaluation={"addition": {"num_problems": 20, "seed": 1}})
    record = plan(with_config(ctx, prompts=addition.prompts, evaluation=addition.evaluation))
    assert (record["prompts"], record["evaluation_prompts"]) == (10, 20)


def test_seal_writes_the_manifest_once(ctx: RunContext) -> None:
    plan(ctx)
    commit_plan(*paths(ctx))
    record = seal_dataset(ctx)
    manifest = ctx.run_dir.read_json("manifest.json")
    assert manifest["ledger"] == record["ledger"]
    assert record["ledger"] == {"planned": 6, "accepted": 6, "rejected": 0, "failed": 0, "pending": 0}
    assert [file["num_rows"] for file in manifest["files"]] == [4, 2]
    assert "watermarks" not in manifest
    (Path(ctx.run_dir.uri()) / "manifest.json").unlink()
    assert seal_dataset(ctx) == record
    assert ctx.run_dir.read_json("manifest.json") is None  # nothing has changed, so nothing was done


def test_seal_writes_the_teachers_mark_into_the_manifest(ctx: RunContext) -> None:
    mark = {"key_env": "MY_KEY", "key_id": "0123456789abcdef"}
    plan(ctx)
    commit_plan(*paths(ctx))
    seal_dataset(with_config(ctx, teacher=make_config(teacher__watermark=mark).teacher))
    manifest = ctx.run_dir.read_json("manifest.json")
    recorded = {"kind": "gumbel", "context_tokens": 4, "channels": 1, "key_id": "0123456789abcdef"}
    assert manifest["watermarks"] == {"teacher": recorded}


def test_seal_after_further_shards_seals_again(ctx: RunContext) -> None:
    plan(ctx)
    commit_plan(*paths(ctx))
    seal_dataset(ctx)
    write_prompts(Path(str(ctx.config.prompts.source)), 9)
    plan(ctx)
    with pytest.raises(UserError, match=r"shard 2 \(3 rows, .* has not been made yet"):
        seal_dataset(ctx)
    commit_plan(*paths(ctx), skip=(0, 1))
    assert seal_dataset(ctx)["ledger"]["accepted"] == 9


def test_seal_without_an_accepted_row_is_refused(ctx: RunContext) -> None:
    plan(ctx)
    prompts, completions = paths(ctx)
    for shard, prompt_ids in enumerate(planned_ids(prompts)):
        commit_rows(completions, [make_row(each, 0, shard, RowStatus.REJECTED) for each in prompt_ids], shard)
    with pytest.raises(UserError, match="no row of 6 was accepted"):
        seal_dataset(ctx)
    assert ctx.run_dir.read_json("manifest.json") is None


def test_plan_command_foretells_the_shards_that_the_phase_makes(
    ctx: RunContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = make_config(sampling={"n": 3}).sampling  # shards of four rows hold one prompt's three samples
    record = plan(with_config(ctx, sampling=sampling))
    recipe = tmp_path / "recipe.yaml"
    tree = put(put(TREE, "prompts", {"source": ctx.config.prompts.source}), "generation.shard_rows", 4)
    tree = put(tree, "terms.prompts.license", "own")
    recipe.write_text(json.dumps(put(tree, "sampling.n", 3)))
    capsys.readouterr()
    assert run_command(["plan", str(recipe)]) == 0
    assert f"18 rows in {record['shards']} shards" in capsys.readouterr().out
