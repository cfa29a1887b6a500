"""A file that went astray tells where it came from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.audit_texts import read_mark
from cluster.cli import run_command
from configs.errors import UserError
from configs.schema import RunConfig
from services.acceptance import rows_to_table
from services.table import write_file
from tests.unit.cluster.test_lineage import COMMIT, LLAMA, answers, llama, traced

pytestmark = pytest.mark.unit


def store(directory: Path, config: RunConfig) -> str:
    job = traced(config)
    action = write_file(str(directory), rows_to_table(answers(3), "teacher", job.lineage), 0, job.footer, 5.0)
    return f"{directory}/{action.path}"


def test_trace_tells_run_teacher_licence_and_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["terms", "trace", store(tmp_path, llama())]) == 0
    printed = capsys.readouterr().out
    for words in (
        "3 of the run small, made by stillhouse",
        f"{LLAMA} at {COMMIT}",
        "temperature 0.7",
        "allow with obligations on 20",
        f"teacher {LLAMA} at {COMMIT}: llama-3.1-license-2024",
        "prompts prompts.addition: stillhouse-addition",
    ):
        assert words in printed


def test_trace_tells_the_mark_and_audits_go_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = {"key_env": "MY_KEY", "key_id": "0123456789abcdef", "kind": "green_list", "context_tokens": 2}
    path = store(tmp_path, llama(teacher={"model": LLAMA, "revision": COMMIT, "watermark": mark}))
    assert run_command(["terms", "trace", path]) == 0
    printed = capsys.readouterr().out
    assert (
        "watermark  channels 1, context_tokens 2, green_bias 2.0, green_share 0.25, key_id 0123456789abcdef" in printed
    )
    assert read_mark(path) == read_mark(str(tmp_path))
    assert (read_mark(path) or {})["kind"] == "green_list"
    store(tmp_path, llama(teacher={"model": LLAMA, "revision": COMMIT, "watermark": mark | {"key_id": "f" * 16}}))
    with pytest.raises(UserError, match="have different marks \\(of the keys 0123456789abcdef and ffffffffffffffff\\)"):
        read_mark(str(tmp_path))


def test_unmarked_file_has_no_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store(tmp_path, llama())
    assert read_mark(path) is None
    assert run_command(["terms", "trace", path]) == 0
    assert "watermark" not in capsys.readouterr().out


def test_trace_tells_waivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "meta-llama/Llama-2-7b-hf"
    waiver = {"source": name, "license": "llama-2-license-2023", "document_sha256": "a" * 64}
    waiver |= {"approver": "Counsel", "expires": "2999-01-01", "document": "/secret/place"}
    path = store(tmp_path, llama(teacher={"model": name}, terms__waivers=[waiver]))
    assert run_command(["terms", "trace", path]) == 0
    printed = capsys.readouterr().out
    assert f"llama-2-license-2023 of {name} by Counsel until 2999-01-01" in printed
    assert "/secret/place" not in pq.read_schema(path).metadata[b"stillhouse.generation_spec"].decode()


def test_trace_of_other_files_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_text("PAR1")
    for name, reason in (
        ("other", "does not say where it came from"),
        ("broken", "cannot be read as a Parquet"),
        ("missing", "cannot be read as a Parquet"),
    ):
        assert run_command(["terms", "trace", str(tmp_path / f"{name}.parquet")]) == 2
        assert reason in capsys.readouterr().err
