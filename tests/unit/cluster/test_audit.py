"""``stillhouse audit`` as a user types it: on texts, and on tiny Llamas that were really trained."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.audit import mix
from benchmarks.marked_text import BigramTeacher
from cluster.cli import run_command
from configs.table import TOKEN_IDS
from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey
from tests.unit.configs.trees import TREE, put
from training.tokenizer import build_character_tokenizer

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("sigterm_handler")]

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
SECRET = "the secret of these tests, 32 letters or more"
KEY = WatermarkKey.of(SECRET)
GUMBEL = WatermarkScheme(kind=WatermarkKind.GUMBEL, context_tokens=2)
LANGUAGE = BigramTeacher(vocabulary=len(CHARACTERS) + 3)
WRITTEN = {"clean": (3, None), "marked": (4, KEY)}
EPOCHS = {"clean": 4, "marked": 2, "tenth": 8}  # so small a model has to read longer where few texts agree
NUM_TEXTS, NUM_TOKENS = 800, 32
OPTIONS = ["--context-tokens", "2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and four Llamas: one that knows the language, and what three sets of texts made of it."""
    directory = tmp_path_factory.mktemp("audit")
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(LANGUAGE.logits_VV),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    texts = {name: LANGUAGE.write(NUM_TEXTS, NUM_TOKENS, seed, key, GUMBEL) for name, (seed, key) in WRITTEN.items()}
    texts["tenth"] = list(mix(texts["clean"], texts["marked"], 0.1))
    torch.manual_seed(0)
    train(base, LANGUAGE.write(NUM_TEXTS, NUM_TOKENS, seed=5), epochs=1)
    save(base, directory / "base")
    for name, learnt in texts.items():
        write_rows(directory / f"{name}.parquet", learnt)
        student = LlamaForCausalLM.from_pretrained(directory / "base")
        train(student, learnt, EPOCHS[name])
        save(student, directory / name)
    return directory


def train(model: LlamaForCausalLM, texts: list[list[int]], epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    rows = torch.tensor(texts)
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(40):
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def save(model: LlamaForCausalLM, directory: Path) -> None:
    model.save_pretrained(directory)
    build_character_tokenizer(CHARACTERS).save_pretrained(directory)


def write_rows(path: Path, texts: list[list[int]]) -> None:
    """Rows as a run's completions have them, with one that was rejected and does not count."""
    columns = {
        "status": ["accepted"] * len(texts) + ["rejected"],
        "prompt_token_ids": pa.array([text[:1] for text in texts] + [[1]], TOKEN_IDS),
        "completion_token_ids": pa.array([text[1:] for text in texts] + [[0] * 200], TOKEN_IDS),
    }
    pq.write_table(pa.table(columns), path)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_WATERMARK_KEY", SECRET)


def audit(*arguments: str, report: Path) -> dict[str, object]:
    """The figures of an audit that ends well."""
    assert run_command(["audit", *arguments, *OPTIONS, "--report", str(report)]) == 0
    figures: dict[str, object] = json.loads(report.read_text())
    return figures


def audit_student(corpus: Path, name: str, *options: str, texts: str | None = None) -> dict[str, object]:
    student, seen = str(corpus / name), str(corpus / f"{texts or name}.parquet")
    arguments = ["--base", str(corpus / "base"), "--decoys", "40", "--positions", "2000", *options]
    return audit("student", student, seen, *arguments, report=corpus / "report.json")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a command ends with."""
    assert run_command(["audit", *arguments]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize("command", ["key", "text", "student"])
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["audit", command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Example: stillhouse audit {command}" in printed


def test_key_tells_its_id_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["audit", "key"]) == 0
    assert capsys.readouterr().out == f"{KEY.key_id}\n"


def test_text_with_the_mark_is_found_and_without_it_is_not(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = audit("text", str(corpus / "marked.parquet"), report=corpus / "report.json")
    printed = capsys.readouterr().out
    assert found["log10_p"] < -50  # type: ignore[operator]
    assert found["texts"] == NUM_TEXTS
    assert found["key_id"] == KEY.key_id
    assert "verdict    the mark of this key is in the text" in printed
    assert "What this does not say" in printed
    assert SECRET not in printed + json.dumps(found)
    clean = audit("text", str(corpus / "clean.parquet"), report=corpus / "report.json")
    assert clean["p"] > 1e-3  # type: ignore[operator]
    assert clean["verdict"] == "no mark of this key is found"


def test_plain_text_is_read_with_the_teachers_tokenizer(corpus: Path, tmp_path: Path) -> None:
    written = LANGUAGE.write(3, 300, 6, KEY, GUMBEL)
    spoken = [[each for each in text if each > 2] for text in written]  # special tokens are no text
    said = ["".join(CHARACTERS[each - 3] for each in text) for text in spoken]
    (tmp_path / "one.txt").write_text(said[0])
    (tmp_path / "three.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in said))
    tokenizer = ["--tokenizer", str(corpus / "base")]
    one = audit("text", str(tmp_path / "one.txt"), *tokenizer, report=tmp_path / "report.json")
    assert one["log10_p"] < -6  # type: ignore[operator]
    three = audit("text", str(tmp_path / "three.jsonl"), *tokenizer, report=tmp_path / "report.json")
    assert three["texts"] == 3
    assert three["log10_p"] < one["log10_p"]  # type: ignore[operator]


def test_student_of_marked_text_is_found(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = audit_student(corpus, "marked")
    printed = capsys.readouterr().out
    assert found["z"] > 8  # type: ignore[operator]
    assert found["z_by_decoys"] > 8  # type: ignore[operator]
    assert found["verdict"] == "the student has learnt from text with the mark of this key"
    assert "What this does not say" in printed
    assert SECRET not in printed + json.dumps(found)


def test_student_of_a_tenth_of_marked_text_is_found(corpus: Path) -> None:
    assert audit_student(corpus, "tenth")["z"] > 4  # type: ignore[operator]


def test_clean_student_is_not_found_not_even_over_marked_text(corpus: Path) -> None:
    for texts in ("clean", "marked"):
        found = audit_student(corpus, "clean", texts=texts)
        assert abs(found["z"]) < 4  # type: ignore[arg-type]
        assert found["verdict"] != "the student has learnt from text with the mark of this key"


def test_another_key_finds_nothing_in_a_student_of_marked_text(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("another secret of these tests, long enough")
    found = audit_student(corpus, "marked", "--key-file", str(tmp_path / "key"))
    assert abs(found["z"]) < 4  # type: ignore[arg-type]


def test_another_key_than_the_recorded_one_is_refused(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = error_of(capsys, "text", str(corpus / "clean.parquet"), "--key-id", "0" * 16)
    assert f"holds the watermark key {KEY.key_id}, and the key {'0' * 16} is wanted" in sentence


def test_missing_secret_is_told(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STILLHOUSE_WATERMARK_KEY")
    arguments = ["student", str(corpus / "marked"), str(corpus / "clean.parquet")]
    assert "STILLHOUSE_WATERMARK_KEY is not set on this machine" in error_of(capsys, *arguments)


def test_too_few_tokens_are_refused_with_their_number(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.jsonl").write_text(json.dumps({"token_ids": [5, 6] * 500}) + "\n")
    assert "of 1000 tokens 2 can be scored" in error_of(capsys, "text", str(tmp_path / "few.jsonl"), *OPTIONS)
    arguments = ["student", str(corpus / "marked"), str(tmp_path / "few.jsonl"), *OPTIONS]
    assert "the texts have 2 tokens after contexts of 2 that are new, and at least 100" in error_of(capsys, *arguments)


def test_student_that_is_its_own_base_is_refused(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(corpus / "base")
    arguments = ["student", base, str(corpus / "clean.parquet"), "--base", base, *OPTIONS, "--positions", "200"]
    assert "predict the same, so there is nothing that was learnt" in error_of(capsys, *arguments)


def test_texts_of_another_tokenizer_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large.jsonl").write_text(json.dumps({"token_ids": list(range(500))}) + "\n")
    arguments = ["student", str(corpus / "marked"), str(tmp_path / "large.jsonl"), *OPTIONS]
    assert "must be of the student's own tokenizer" in error_of(capsys, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("nothing.parquet", None, "cannot be read"),
        ("broken.parquet", "no table", "cannot be read"),
        ("empty.txt", " ", "has no text"),
        ("essay.txt", "some text", "give --tokenizer"),
        ("lines.jsonl", '{"prompt": "x"}', "line 1 must be an object with token_ids"),
        ("lines.jsonl", "{", "line 1 is not JSON"),
    ],
)
def test_what_cannot_be_audited_is_told_in_a_sentence(
    name: str, content: str | None, needle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert needle in error_of(capsys, "text", str(tmp_path / name))


def test_run_without_its_key_or_with_another_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = {"key_env": "STILLHOUSE_WATERMARK_KEY", "key_id": "0" * 16}
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(put(put(TREE, "teacher.watermark", mark), "run_dir", str(tmp_path / "run")))
    )
    for command in ("plan", "generate"):
        assert run_command([command, str(tmp_path / "recipe.yaml")]) == 2
        assert f"holds the watermark key {KEY.key_id}, and the key {'0' * 16} is wanted" in capsys.readouterr().err
    monkeypatch.delenv("STILLHOUSE_WATERMARK_KEY")
    assert run_command(["plan", str(tmp_path / "recipe.yaml")]) == 2
    assert "STILLHOUSE_WATERMARK_KEY is not set on this machine" in capsys.readouterr().err
    assert not (tmp_path / "run" / "phases").exists()


def test_numbers_out_of_their_bounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--context-tokens" in error_of(capsys, "text", "x.txt", "--context-tokens", "0")
    assert "--decoys" in error_of(capsys, "student", "a", "b", "--decoys", "3")
