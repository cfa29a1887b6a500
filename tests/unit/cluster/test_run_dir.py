"""The run directory: whole files or none, on any file system, and one configuration for each directory."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from upath import UPath

from cluster.run_dir import PROJECT_ROOT, RunDir
from configs.errors import UserError
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit

MEMORY = "memory://run-dir-test/runs/small"


@pytest.fixture(params=["local", "memory"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunDir]:
    """An empty run directory on a disk and in an object store's stand-in."""
    if request.param == "local":
        yield RunDir.of(make_config(run_dir=str(tmp_path / "runs" / "small")))
        return
    yield RunDir.of(make_config(run_dir=MEMORY))
    memory = fsspec.filesystem("memory")
    if memory.exists("/run-dir-test"):
        memory.rm("/run-dir-test", recursive=True)


def test_run_dir_unset_is_named_after_the_run_under_the_project() -> None:
    assert Path(RunDir.of(make_config(name="small")).uri()) == PROJECT_ROOT / "runs" / "small"


def test_run_dir_relative_is_under_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = RunDir.of(make_config(run_dir="here/run"))
    monkeypatch.chdir("/")
    assert Path(run_dir.uri("a")) == tmp_path / "here" / "run" / "a"


def test_run_dir_on_another_file_system_keeps_its_protocol() -> None:
    run_dir = RunDir.of(make_config(run_dir=MEMORY))
    assert run_dir.uri() == MEMORY
    assert run_dir.prompts_uri == f"{MEMORY}/prompts"
    assert run_dir.completions_uri == f"{MEMORY}/completions"
    assert run_dir.student_hf == f"{MEMORY}/student/hf"


def test_cache_is_shared_by_runs_beside_each_other(tmp_path: Path) -> None:
    first, second = (RunDir.of(make_config(run_dir=str(tmp_path / name))) for name in ("a", "b"))
    assert first.cache == second.cache == UPath(tmp_path / ".cache")


def test_write_and_read_text_and_json(run_dir: RunDir) -> None:
    run_dir.write_text("deep/er/note.txt", "grüße\n")
    run_dir.write_json("phases/plan.json", {"rows": 5, "ok": None})
    assert run_dir.read_text("deep/er/note.txt") == run_dir.read_text("deep", "er", "note.txt") == "grüße\n"
    assert run_dir.read_json("phases/plan.json") == run_dir.phase_record("plan") == {"rows": 5, "ok": None}


def test_read_of_what_is_not_there_is_none(run_dir: RunDir) -> None:
    assert run_dir.read_text("config.json") is None
    assert run_dir.read_json("phases", "plan.json") is None
    assert run_dir.phase_record("plan") is None


def test_write_again_replaces_the_file_and_leaves_nothing_beside_it(run_dir: RunDir) -> None:
    run_dir.write_text("note.txt", "a long first version")
    run_dir.write_text("note.txt", "second")
    assert run_dir.read_text("note.txt") == "second"
    assert [path.name for path in run_dir.root.iterdir()] == ["note.txt"]


def test_write_leaves_a_reader_of_the_old_file_the_old_content(tmp_path: Path) -> None:
    run_dir = RunDir(UPath(tmp_path))
    run_dir.write_text("note.txt", "first")
    with open(tmp_path / "note.txt") as reader:
        run_dir.write_text("note.txt", "second")
        assert reader.read() == "first"


def test_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    run_dir = RunDir(UPath(tmp_path))
    run_dir.write_json("record.json", {"rows": 1})
    with pytest.raises(TypeError):
        run_dir.write_json("record.json", {"rows": object()})
    with pytest.raises(UnicodeEncodeError):
        run_dir.write_text("record.json", "\ud800")
    assert run_dir.read_json("record.json") == {"rows": 1}


def test_write_to_a_file_uri_leaves_a_reader_of_the_old_file_the_old_content(tmp_path: Path) -> None:
    run_dir = RunDir.of(make_config(run_dir=f"file://{tmp_path}"))
    run_dir.write_text("note.txt", "first")
    with open(tmp_path / "note.txt") as reader:
        run_dir.write_text("note.txt", "second")
        assert reader.read() == "first"


def test_claim_saves_the_resolved_configuration(run_dir: RunDir) -> None:
    config = make_config(training__epochs=3)
    run_dir.claim(config)
    saved = run_dir.read_json("config.json")
    assert saved["training"]["epochs"] == 3
    assert saved["sampling"]["temperature"] == config.sampling.temperature  # defaults included


def test_claim_by_the_same_configuration_again_is_taken(run_dir: RunDir) -> None:
    run_dir.claim(make_config())
    run_dir.claim(make_config(generation__clients=5, deadlines__request=9))
    assert run_dir.read_json("config.json")["generation"]["clients"] == 5


def test_claim_by_another_configuration_is_refused_with_every_key(run_dir: RunDir) -> None:
    run_dir.claim(make_config())
    before = run_dir.read_text("config.json")
    other = make_config(sampling__temperature=0.1, teacher__make__addition__seed=4, generation__clients=5)
    with pytest.raises(UserError) as error:
        run_dir.claim(other)
    assert str(run_dir.root) in str(error.value)
    assert "differs in sampling.temperature, teacher.make.addition.seed;" in str(error.value)
    assert "run_dir=" in str(error.value)
    assert run_dir.read_text("config.json") == before


def test_claim_of_a_directory_of_a_version_with_other_keys_is_refused(run_dir: RunDir) -> None:
    run_dir.claim(make_config())
    saved = run_dir.read_json("config.json")
    run_dir.write_text("config.json", json.dumps({**saved, "cluster": {"colour": "red"}}))
    with pytest.raises(UserError) as error:
        run_dir.claim(make_config())
    assert "unknown key cluster.colour" in str(error.value)
    assert "config.json" in str(error.value)


def test_claim_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(UserError) as error:
        RunDir.of(make_config(run_dir=str(tmp_path / "file" / "run"))).claim(make_config())
    assert f"run_dir: {tmp_path}/file/run cannot be written" in str(error.value)


def test_claim_of_a_directory_whose_configuration_is_unreadable_is_refused(run_dir: RunDir) -> None:
    run_dir.write_text("config.json", '{"name": "sma')
    with pytest.raises(UserError, match=r"config\.json"):
        run_dir.claim(make_config())
