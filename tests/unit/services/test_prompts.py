"""Every form a source may have gives the same prompts, and what cannot be read is named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from configs.schema import AdditionConfig, BrokenLinePolicy, PromptsConfig
from services.prompts import Prompt, make_prompt, read_addition, read_prompts

pytestmark = pytest.mark.unit

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie groß ist π?"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": "Zwölf?", "answer": None},
    {"messages": CHAT, "answer": "3"},
]


def to_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(to_lines(rows))
    return path


def write_gzip(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(gzip.compress(to_lines(rows)))
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(source: Path | str, **settings: Any) -> list[Prompt]:
    return list(read_prompts(PromptsConfig(source=str(source), **settings)))


def refusal(source: Path | str, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        read(source, **settings)
    return str(error.value)


EXPECTED = [make_prompt("1+1=", "2"), make_prompt("Zwölf?"), make_prompt(CHAT, "3")]


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", write_jsonl), ("a.jsonl.gz", write_gzip), ("a.parquet", write_parquet)]
)
def test_read_prompts_every_format_gives_the_same(
    tmp_path: Path, name: str, write: Callable[[Path, list[Any]], Path]
) -> None:
    rows = ROWS if name != "a.parquet" else [{"messages": None, "prompt": None, **row} for row in ROWS]
    assert read(write(tmp_path / name, rows)) == EXPECTED
    assert read(f"file://{tmp_path / name}") == EXPECTED


def test_read_prompts_directory_takes_all_its_files_in_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    write_parquet(tmp_path / "a.parquet", ROWS[1:2])
    write_gzip(tmp_path / "deep" / "c.jsonl.gz", ROWS[2:])
    (tmp_path / "README.md").write_text("not a prompt")
    assert read(tmp_path) == [EXPECTED[1], EXPECTED[0], EXPECTED[2]]


def test_read_prompts_from_another_file_system() -> None:
    with fsspec.open("memory://prompts-test/a.jsonl", "wb") as file:
        file.write(to_lines(ROWS))
    assert read("memory://prompts-test/a.jsonl") == EXPECTED
    assert read("memory://prompts-test") == EXPECTED


def test_read_prompts_keeps_order_and_duplicates_of_the_source(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ("b", "a", "b")]
    assert [each.prompt for each in read(write_jsonl(tmp_path / "a.jsonl", rows))] == ['"b"', '"a"', '"b"']


def test_read_prompts_skips_empty_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\n   \n{"prompt": "b"}')
    assert read(path) == [make_prompt("a"), make_prompt("b")]


def test_read_prompts_limit_stops_before_what_it_does_not_need(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}, "broken"])
    assert read(path, limit=2) == [make_prompt("a"), make_prompt("b")]
    assert "a.jsonl:3" in refusal(path, limit=3)


def test_read_prompts_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"question": "a", "solution": 5}, {"chat": CHAT, "solution": "x"}]
    settings = {"prompt_column": "question", "messages_column": "chat", "answer_column": "solution"}
    assert read(write_jsonl(tmp_path / "a.jsonl", rows), **settings) == [make_prompt("a", "5"), make_prompt(CHAT, "x")]


@pytest.mark.parametrize(
    ("answer", "text"), [("5", "5"), (5, "5"), (1.5, "1.5"), (0, "0"), ("", ""), (None, None), (False, "False")]
)
def test_read_prompts_answer_becomes_text(tmp_path: Path, answer: Any, text: str | None) -> None:
    [prompt] = read(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "answer": answer}]))
    assert prompt.answer == text


def test_read_prompts_chat_wins_over_a_plain_prompt_beside_it(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "messages": CHAT}])) == [make_prompt(CHAT)]


BROKEN = [
    (b'{"prompt": "half', "is not JSON"),
    (b'{"prompt": "\xff"}', "is not JSON"),
    (b"[1, 2]", "is not a JSON object"),
    (b"{}", "neither 'messages'"),
    (b'{"text": "a"}', "nor 'prompt'"),
    (b'{"prompt": ""}', "'prompt' must be a non-empty string"),
    (b'{"prompt": 5}', "'prompt' must be a non-empty string"),
    (b'{"messages": []}', "'messages' must be a non-empty list"),
    (b'{"messages": "hello"}', "'messages' must be a non-empty list"),
    (b'{"messages": [{"role": "user"}]}', "needs a role and a content"),
    (b'{"messages": [{"role": 5, "content": "a"}]}', "needs a role and a content"),
    (b'{"messages": ["hello"]}', "needs a role and a content"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN)
def test_broken_line_is_refused_with_file_and_line(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n' + line + b'\n{"prompt": "b"}\n')
    message = refusal(path)
    assert f"{path}:3: " in message
    assert problem in message
    assert "prompts.on_broken_line=fail_row" in message


@pytest.mark.parametrize(("line", "problem"), BROKEN)
def test_broken_line_is_kept_as_a_failing_prompt(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n')
    first, broken, last = read(path, on_broken_line=BrokenLinePolicy.FAIL_ROW)
    assert (first, last) == (make_prompt("a"), make_prompt("b"))
    assert broken.error is not None
    assert f"{path}:2: " in broken.error
    assert problem in broken.error
    json.loads(broken.prompt)  # what is kept of the line can be read
    assert broken.prompt_id not in {first.prompt_id, last.prompt_id}


def test_broken_lines_have_ids_of_their_own_content(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}, {"text": "a"}])
    ids = [each.prompt_id for each in read(path, on_broken_line=BrokenLinePolicy.FAIL_ROW)]
    assert ids[0] == ids[2] != ids[1]


def test_broken_row_of_parquet_is_refused_with_its_number(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"prompt": "a"}, {"prompt": None}])
    assert f"{path}, row 1" in refusal(path)


def test_missing_source_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "prompts.source" in message
    assert str(tmp_path / "nowhere") in message


def test_source_of_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\na\n")
    for source in (tmp_path / "a.csv", tmp_path):
        message = refusal(source)
        for needle in (str(source), ".jsonl", ".jsonl.gz", ".parquet"):
            assert needle in message


def test_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("prompt\na\n")
    assert "a.parquet is not a Parquet file" in refusal(tmp_path / "a.parquet")


def test_empty_source_gives_no_prompts(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path / "a.jsonl", [])) == []


def test_make_prompt_id_depends_on_the_content_alone() -> None:
    chat = [{"content": "a", "role": "user"}]
    assert make_prompt(chat, "1").prompt_id == make_prompt([{"role": "user", "content": "a"}], "2").prompt_id
    ids = {
        make_prompt(each).prompt_id for each in ("a", "b", chat, [*chat, *chat], [{"role": "system", "content": "a"}])
    }
    assert len(ids) == 5


def test_make_prompt_id_is_the_same_in_every_version() -> None:
    """Plans on disk are extended by later versions: a new way to hash would plan everything again."""
    prompt = make_prompt([{"role": "user", "content": "347+285="}], "632")
    assert prompt.prompt == '[{"content":"347+285=","role":"user"}]'
    assert prompt.prompt_id == "9f40ea1592aa25dc9c78214a355a7a5a"


def test_read_prompts_of_addition_are_chats_with_answers() -> None:
    addition = AdditionConfig(num_problems=20, seed=3)
    prompts = list(read_prompts(PromptsConfig(addition=addition)))
    assert prompts == list(read_addition(addition, held_out=False))
    assert len({each.prompt_id for each in prompts}) == 20
    for prompt in prompts:
        [message] = json.loads(prompt.prompt)
        a, b = message["content"].rstrip("=").split("+")
        assert (message["role"], prompt.answer) == ("user", str(int(a) + int(b)))


def test_read_prompts_limit_of_addition() -> None:
    config = PromptsConfig(addition=AdditionConfig(num_problems=20), limit=5)
    assert len(list(read_prompts(config))) == 5


def test_line_with_half_a_character_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "\\ud83d"}\n')
    [prompt] = read(path, on_broken_line=BrokenLinePolicy.FAIL_ROW)
    assert prompt.error is not None


def test_line_nested_too_deep_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[" * 100_000 + "\n")
    [prompt] = read(path, on_broken_line=BrokenLinePolicy.FAIL_ROW)
    assert prompt.error is not None


def test_gzip_file_that_is_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(to_lines(ROWS))[:-12])
    assert str(path) in refusal(path)


def test_gzip_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.gz", ROWS)
    assert str(path) in refusal(path)


def test_chat_whose_messages_have_different_fields_has_one_id_in_every_format(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": "a", "name": "n"}, {"role": "user", "content": "b"}]}]
    assert read(write_parquet(tmp_path / "a.parquet", rows)) == read(write_jsonl(tmp_path / "a.jsonl", rows))


TEACHERS = ("small", "large")


def read_routed(path: Path, rows: list[Any], **settings: Any) -> list[Prompt]:
    source = write_jsonl(path, rows)
    return list(read_prompts(PromptsConfig(source=str(source), teacher_column="by", **settings), TEACHERS))


def test_rows_are_routed_by_their_column_and_keep_their_ids(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "by": "large"}, {"prompt": "b", "by": "small"}]
    prompts = read_routed(tmp_path / "p.jsonl", rows)
    assert [each.teacher for each in prompts] == ["large", "small"]
    assert [each.prompt_id for each in prompts] == [make_prompt("a").prompt_id, make_prompt("b").prompt_id]


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": "a", "by": None}, {"prompt": "a", "by": ""}])
def test_row_that_names_no_teacher_goes_to_the_default(tmp_path: Path, row: dict[str, Any]) -> None:
    [prompt] = read_routed(tmp_path / "p.jsonl", [row], default_teacher="large")
    assert prompt.teacher == "large"


@pytest.mark.parametrize(
    ("row", "needles"),
    [
        ({"prompt": "a"}, ["names no teacher in 'by'", "prompts.default_teacher", "small, large"]),
        ({"prompt": "a", "by": "huge"}, ["'by'", "'huge'", "small, large"]),
        ({"prompt": "a", "by": ["small"]}, ["'by'", "['small']"]),
    ],
)
def test_row_without_a_teacher_is_refused_with_its_place(
    tmp_path: Path, row: dict[str, Any], needles: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        read_routed(tmp_path / "p.jsonl", [{"prompt": "b", "by": "small"}, row])
    for needle in ["p.jsonl:2", *needles]:
        assert needle in str(error.value)


def test_row_without_a_teacher_is_kept_as_a_broken_line_when_the_recipe_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "by": "huge"}]
    [prompt] = read_routed(tmp_path / "p.jsonl", rows, on_broken_line=BrokenLinePolicy.FAIL_ROW)
    assert prompt.error is not None
    assert prompt.teacher in TEACHERS
