"""What rows and files say of where they came from, and what that costs."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from cluster.lineage import trace_tables
from cluster.terms import decide
from configs.repository import public_address
from configs.schema import Device, EngineKind, RunConfig, SamplingConfig
from configs.table import COMPLETIONS_SCHEMA, LICENSED_COLUMNS, SPEC_KEY
from services.acceptance import Row, rows_to_table
from services.client import TableJob
from services.lineage import Lineage, add_template
from services.table import TableWriter, open_or_create, write_file
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
COLUMNS = list(Lineage().to_dict())


def traced(config: RunConfig, teacher: str = "teacher", table: str = "completions") -> TableJob:
    jobs = {table: TableJob("prompts", "completions", config.sampling, config.acceptance, {"other": "key"})}
    decision = decide(config)
    job = trace_tables(config, jobs, teacher, decision, EngineKind.IN_PROCESS, Device.CPU)[table]
    lineage, footer = add_template(job.lineage, job.footer, "0" * 16)
    return replace(job, lineage=lineage, footer=footer)


def llama(**changed: Any) -> RunConfig:
    teacher = {"model": LLAMA, "revision": COMMIT}
    return make_config(**{"teacher": teacher, "terms__party__monthly_active_users": 10, **changed})


def test_every_row_of_a_table_has_its_lineage_and_its_file_the_specification(tmp_path: Path) -> None:
    uri, job = str(tmp_path / "completions"), traced(llama(prompts={"source": "hf://datasets/openai/gsm8k"}))
    open_or_create(uri, COMPLETIONS_SCHEMA, "completions")
    action = write_file(uri, rows_to_table(answers(8), "teacher", job.lineage), 0, job.footer, 5.0)
    TableWriter(uri, COMPLETIONS_SCHEMA, 5.0).add([action])
    rows = DeltaTable(uri).to_pyarrow_table(columns=COLUMNS).to_pylist()
    assert rows == [job.lineage.to_dict()] * 8
    assert {name: rows[0][name] for name in LICENSED_COLUMNS} == {
        "teacher_repo": LLAMA,
        "teacher_revision": COMMIT,
        "teacher_license": "llama-3.1-license-2024",
        "terms_id": None,
        "prompt_source": "hf://datasets/openai/gsm8k",
        "prompt_license": "mit",
    }
    assert rows[0]["decision"].startswith("allow_with_obligations@")
    assert json.loads(rows[0]["sampling"])["seed"] == 0
    spec = json.loads(pq.read_schema(f"{uri}/{action.path}").metadata[SPEC_KEY.encode()])
    assert spec["teacher"] == {"name": "teacher", "model": LLAMA, "revision": COMMIT}
    assert spec["template"] == rows[0]["template"]
    assert spec["run"] == "small"


def test_rows_of_a_home_made_teacher_name_what_made_them() -> None:
    lineage = traced(make_config()).lineage
    assert (lineage.teacher_repo, lineage.teacher_license) == ("the home-made teacher", "stillhouse-home-made")
    assert (lineage.prompt_source, lineage.prompt_license) == ("prompts.addition", "stillhouse-addition")


def test_terms_of_services_are_in_each_row() -> None:
    lineage = traced(make_config(terms={"services": [{"provider": "deepseek"}]})).lineage
    assert lineage.terms_id == "deepseek-open-platform-tos-2026-04-29"


def test_engine_fingerprint_changes_with_what_the_engine_computes() -> None:
    first = traced(llama()).lineage.engine
    other = {"model": LLAMA, "revision": COMMIT, "engine": {"dtype": "float16"}}
    assert traced(llama()).lineage.engine == first
    assert traced(llama(teacher=other)).lineage.engine != first


def test_mark_is_in_the_specification_of_drawn_rows_alone_and_in_their_engine_fingerprint() -> None:
    mark = {"key_env": "MY_KEY", "key_id": "0123456789abcdef", "context_tokens": 2}
    marked = llama(teacher={"model": LLAMA, "revision": COMMIT, "watermark": mark})
    spec = json.loads(traced(marked).footer[SPEC_KEY])
    recorded = {"kind": "gumbel", "context_tokens": 2, "channels": 1, "key_id": "0123456789abcdef"}
    assert spec["engine"]["watermark"] == recorded
    assert "MY_KEY" not in traced(marked).footer[SPEC_KEY]
    assert "watermark" not in traced(llama()).footer[SPEC_KEY]
    assert traced(marked).lineage.engine != traced(llama()).lineage.engine
    greedy = TableJob("p", "c", SamplingConfig(temperature=0.0), marked.acceptance, {})
    held_out = trace_tables(
        marked, {"completions": greedy}, "teacher", decide(marked), EngineKind.IN_PROCESS, Device.CPU
    )["completions"]
    assert "watermark" not in held_out.footer[SPEC_KEY]
    assert held_out.lineage.engine == traced(llama()).lineage.engine


SECRETS = {
    "hf_token": "s3cret",
    "API_KEY": "s3cret",
    "store": "https://me:s3cret@host/x",
    "link": "https://host/x?X-Amz-Signature=s3cret",
    "chain": "zip://a.txt::https://me:s3cret@host/x.zip?sig=s3cret",
    "deep": {"password": "s3cret"},
}


def test_neither_rows_nor_footer_carry_a_secret() -> None:
    teacher = {"model": LLAMA, "revision": COMMIT, "engine": {"extra": SECRETS}}
    source = "https://me:s3cret@host/prompts.jsonl?sig=s3cret"
    config = llama(teacher=teacher, prompts={"source": source}, terms__prompts__license="own")
    job = traced(config)
    assert job.lineage.prompt_source == "https://host/prompts.jsonl"
    assert job.lineage.prompt_license == "own"
    assert "s3cret" not in json.dumps([job.footer, job.lineage.to_dict()])


@given(st.text(min_size=1, alphabet=st.characters(blacklist_characters="@/?#[]:\\", codec="ascii")), st.booleans())
def test_public_address_changes_only_addresses_that_have_secrets(path: str, has_login: bool) -> None:
    assert public_address(path) == path
    login = "user:pass@" if has_login else ""
    assert public_address(f"s3://{login}bucket/a") == "s3://bucket/a"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("https://host/a.jsonl?sv=1&sig=x%3D", "https://host/a.jsonl"),
        ("https://me:a@b::c@host/a#x", "https://host/a"),
        ("zip://a.txt?x::simplecache::https://me:x@host/b.zip?sig=1", "zip://a.txt::simplecache::https://host/b.zip"),
        ("take https://me@host/a?x and s3://b/c", "take https://host/a and s3://b/c"),
        ("hf://datasets/owner/name@v1/a.jsonl", "hf://datasets/owner/name@v1/a.jsonl"),
        ("/data/what? me@home.jsonl", "/data/what? me@home.jsonl"),
    ],
)
def test_public_address_of_signed_links_and_chains(address: str, public: str) -> None:
    assert public_address(address) == public


@pytest.mark.parametrize("num_rows", [256, 512])
def test_lineage_costs_at_most_three_percent_of_a_shard(num_rows: int, tmp_path: Path) -> None:
    """Columns and footer together, beside answers of some hundred tokens, as the real writer stores them."""
    job = traced(llama())
    rows = rows_to_table(answers(num_rows), "teacher", job.lineage)
    without = write_file(str(tmp_path), rows.drop_columns(COLUMNS), 0, {"other": "key"}, 5.0)
    whole = write_file(str(tmp_path), rows, 0, job.footer, 5.0)
    assert size_of(whole) <= 1.03 * size_of(without)


def size_of(action: Any) -> int:
    """Bytes of the file and of its line in the log."""
    return int(action.size) + len(action.stats)


def answers(number: int) -> list[Row]:
    """Answers as language has them: few words are frequent, lengths differ."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 9))) for _ in range(5000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [_answer(rng, words, weights) for _ in range(number)]


def _answer(rng: random.Random, words: list[str], weights: list[float]) -> Row:
    prompt, completion = (
        rng.choices(range(len(words)), weights, k=rng.randint(*span)) for span in ((10, 80), (50, 500))
    )
    text, said = (" ".join(words[each] for each in ids) for ids in (prompt, completion))
    return Row(
        prompt_id=f"{rng.getrandbits(128):032x}",
        sample_index=0,
        shard=0,
        status="accepted",
        reason=None,
        prompt=json.dumps([{"role": "user", "content": text}]),
        completion=said,
        answer=None,
        finish_reason="stop",
        num_prompt_tokens=len(prompt),
        num_completion_tokens=len(completion),
        prompt_token_ids=prompt,
        completion_token_ids=completion,
    )


def test_lineage_columns_are_dictionary_encoded(tmp_path: Path) -> None:
    rows: pa.Table = rows_to_table(answers(64), "teacher", traced(llama()).lineage)
    action = write_file(str(tmp_path), rows, 0, {}, 5.0)
    group = pq.ParquetFile(tmp_path / action.path).metadata.row_group(0)
    chunks = {(chunk := group.column(i)).path_in_schema: chunk for i in range(group.num_columns)}
    assert all(chunks[name].has_dictionary_page for name in COLUMNS if rows.column(name).null_count == 0)
