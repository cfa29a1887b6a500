"""Rows that say they are another maker's model: counted when data is sealed, told in cards and report, and linted."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.claims import claim_words, own_makers
from cluster.cli import run_command
from cluster.context import RunContext
from cluster.phases.export import export
from cluster.phases.seal import seal_dataset
from cluster.progress import Progress
from cluster.report import build_report, summary_lines
from configs.claims import load_claims
from configs.table import RowStatus
from configs.terms.records import Role, Source
from services.lineage import Lineage
from tests.unit.cluster.releases import make_student
from tests.unit.cluster.runs import make_run
from tests.unit.cluster.test_lineage import llama, traced
from tests.unit.configs.trees import make_config
from tests.unit.services.shards import commit_rows, make_rows, planned_ids

pytestmark = pytest.mark.unit

QWEN = Lineage(teacher_repo="Qwen/Qwen3-8B")
SAID = ["I am Claude, an AI model.", "I am ChatGPT.", "The answer is 4.", "I am Qwen."]


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[RunContext]:
    """A run of two shards, of which the second's rows of Qwen say what they are; the second one is rejected."""
    root = tmp_path / "run"
    run_dir = make_run(root, num_prompts=8, skip=(1,))
    ids = planned_ids(Path(run_dir.prompts_uri))[1]
    rows = [replace(row, completion=said) for row, said in zip(make_rows(ids, shard=1), SAID, strict=True)]
    rows[1] = replace(rows[1], status=RowStatus.REJECTED, reason="wrong_answer")
    commit_rows(Path(run_dir.completions_uri), rows, 1, lineage=QWEN)
    config = make_config(evaluation={"addition": {"num_problems": 500}}, run_dir=str(root))
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        yield ctx


def ids_of(ctx: RunContext) -> list[str]:
    return planned_ids(Path(ctx.run_dir.prompts_uri))[1]


def test_seal_counts_claims_by_maker_with_examples(ctx: RunContext, capsys: pytest.CaptureFixture[str]) -> None:
    seal_dataset(ctx)
    claims = ctx.run_dir.read_json("manifest.json")["claims"]
    assert claims == ctx.run_dir.phase_record("seal")["claims"]  # type: ignore[index]
    example = f"{ids_of(ctx)[0]}/0"
    assert claims == {
        "version": load_claims().version,
        "makers": [
            {"maker": "anthropic", "own": False, "rows": 1, "accepted": 1, "examples": [example]},
            {"maker": "openai", "own": False, "rows": 1, "accepted": 0, "examples": []},
            {"maker": "alibaba", "own": True, "rows": 1, "accepted": 1, "examples": [f"{ids_of(ctx)[3]}/0"]},
        ],
    }
    assert "1 accepted row claims to be another maker's model (Anthropic 1)" in capsys.readouterr().err


def test_cards_and_report_tell_claims_of_accepted_rows(ctx: RunContext) -> None:
    make_student(ctx)
    export(ctx)
    words = f"1 accepted row claims to be another maker's model (Anthropic 1), such as `{ids_of(ctx)[0]}/0`; 1 accepted"
    assert f"- identity: {words}" in Path(ctx.run_dir.uri("README.md")).read_text()
    card = Path(ctx.run_dir.student_hf, "README.md").read_text()
    assert f"- identity: {words}" in card
    assert "\n\n\n" not in card
    report = build_report(ctx.run_dir, "small")
    assert report["claims"]["makers"][0]["maker"] == "anthropic"


def test_summary_has_a_line_of_claims_only_where_there_are_any(ctx: RunContext) -> None:
    make_student(ctx)
    # The fixture's seal record is overwritten by none of the others.
    report = build_report(ctx.run_dir, "small")
    assert any(line.startswith("claims    1 accepted row claims") for line in summary_lines(report))
    quiet = {**report, "claims": {"version": "1", "makers": []}}
    assert not any(line.startswith("claims") for line in summary_lines(quiet))


def test_words_say_that_nothing_was_found_and_nothing_where_nobody_looked() -> None:
    assert claim_words({"version": "1", "makers": []}) == "no accepted row says that it is another maker's model"
    assert claim_words(None) is None


def test_teacher_may_call_itself_what_its_bases_are() -> None:
    base = Source(role=Role.TEACHER, name="Qwen/Qwen3-8B", via="somebody/tuned")
    deeper = Source(role=Role.TEACHER, name="meta-llama/Llama-3.1-8B", via="Qwen/Qwen3-8B")
    other = Source(role=Role.JUDGE, name="google/gemma-4-31b-it", via="somebody/tuned")
    assert own_makers("somebody/tuned", ()) == frozenset()
    assert own_makers("somebody/tuned", (base, deeper, other)) == {"alibaba", "meta"}


def test_clients_are_told_whose_model_their_teacher_is() -> None:
    assert traced(llama()).own_makers == {"meta"}
    assert traced(make_config()).own_makers == frozenset()


def test_lint_of_a_run_names_rows_and_counts_the_own_name_apart(
    ctx: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["terms", "lint", str(ctx.run_dir.root)]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    ids = ids_of(ctx)
    assert first == f"{ids[0]}/0 (accepted): Anthropic: 'I am Claude, an AI model.'"
    assert second == f"{ids[1]}/0 (rejected): OpenAI: 'I am ChatGPT.'"
    assert last == (
        "8 rows, 2 claim to be another maker's model (Anthropic 1, OpenAI 1), 1 of them accepted; "
        "1 the teacher's own name"
    )
    assert run_command(["terms", "lint", ctx.run_dir.completions_uri, "--show", "1"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "I am ChatGPT"}, {"role": "assistant", "content": "Nice to meet you."}]},
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I am Qwen."}]},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz", "chats.parquet"])
def test_lint_of_a_file_looks_at_what_the_model_says(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(CHATS), tmp_path / name)
    else:
        write_jsonl(tmp_path / name, CHATS)
    assert run_command(["terms", "lint", str(tmp_path), "--teacher", "meta-llama/Llama-3.1-8B"]) == 1
    assert f"{name}:2: Alibaba: 'I am Qwen.'" in capsys.readouterr().out
    assert run_command(["terms", "lint", str(tmp_path / name), "--teacher", "Qwen/Qwen3-8B"]) == 0
    assert "2 rows, 0 claim to be another maker's model; 1 the teacher's own name" in capsys.readouterr().out


def test_lint_of_what_is_no_table_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jsonl").write_text("{}\nno\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "broken.parquet").write_text("no")
    write_jsonl(tmp_path / "other.jsonl", [{"question": "x"}])
    for arguments, needle in (
        ([str(tmp_path / "nowhere")], "is no table"),
        ([str(tmp_path / "broken.jsonl")], "is no JSON"),
        ([str(tmp_path / "list.jsonl")], "is no object"),
        ([str(tmp_path / "broken.parquet")], "cannot be read as a Parquet file"),
        ([str(tmp_path / "other.jsonl")], "name the one with texts or chats by --column, of question"),
        ([str(tmp_path / "other.jsonl"), "--column", "answer"], "has no column answer"),
    ):
        assert run_command(["terms", "lint", *arguments]) == 2
        printed = capsys.readouterr().err
        assert needle in printed
        assert printed.count("\n") == 1
