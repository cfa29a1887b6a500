"""The documentation says what the code does: generated pages, links, commands, keys, columns and snippets."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from cluster.cli import app
from cluster.report import PHASES
from configs.load import load_run_config
from configs.schema import RunConfig
from configs.table import COMPLETIONS_SCHEMA, PROMPTS_SCHEMA

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page for folder in (".", "docs", "docker", "cluster/kuberay") for page in (ROOT / folder).glob("*.md"))
PAGES = [page for page in PAGES if not page.name.startswith(".")]
COMMANDS = [name for name in app if not name.startswith("-")]


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outside_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def code_blocks(path: Path, language: str) -> list[str]:
    found = re.findall(rf"^[ ]*```{language}\n(.*?)^[ ]*```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [str(block) for block in found]


def anchors(path: Path) -> set[str]:
    """A page's headings as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", outside_code(path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def stillhouse_lines(path: Path) -> Iterator[list[str]]:
    """The arguments of every `stillhouse` command of a page's shell blocks."""
    for block in code_blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["stillhouse"]:
                yield words[1:]


def leaf_keys() -> set[str]:
    walk = load_generator().walk
    return {prefix + name for prefix, model in walk(RunConfig, "") for name in model.model_fields}


def test_configuration_page_is_up_to_date() -> None:
    generator = load_generator()
    assert generator.PAGE.read_text() == generator.render_page(), "run: python docs/generate_configuration.py"


def test_configuration_page_explains_every_key() -> None:
    cells = re.findall(r"^\| `([\w.]+)`.*\| (.*) \|$", load_generator().render_page(), flags=re.MULTILINE)
    assert [key for key, meaning in cells if not meaning.strip()] == []
    assert {"teacher.engine.max_num_seqs", "training.optimizer.learning_rate", "run_dir"} <= dict(cells).keys()


def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(page.read_text())):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_commands_on_the_pages_are_ones_the_program_understands(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes exist, overrides are keys with values that fit, options are known."""
    monkeypatch.chdir(ROOT)
    for words in stillhouse_lines(page):
        command, arguments = words[0], words[1:]
        assert command in COMMANDS
        app.parse_args(words, exit_on_error=False, print_error=False)
        recipe, *rest = [word for word in arguments if word.endswith(".yaml")] or [None]
        assert rest == []
        if recipe is None or not recipe.startswith("configs/recipes/") or recipe.endswith("mine.yaml"):
            continue
        overrides = tuple(word for word in arguments if re.match(r"[a-z_.]+=", word))
        load_run_config(recipe, overrides)


def test_command_line_page_shows_every_command_with_an_example() -> None:
    path = ROOT / "docs" / "cli.md"
    headings = re.findall(r"^## `stillhouse (\w+)`$", path.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)
    assert {words[0] for words in stillhouse_lines(path)} == set(COMMANDS)


def test_keys_named_on_the_pages_exist(page: Path) -> None:
    """A dotted name in backticks that starts with a section is a key."""
    keys, sections = leaf_keys(), set(RunConfig.model_fields) - {"name", "run_dir"}
    # Modules of the packages have dotted names as well.
    named = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:[=:][^`]*)?`", outside_code(page.read_text()))
    unknown = {name for name in named if name.partition(".")[0] in sections and name not in keys}
    modules = {name for name in unknown if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()}
    assert unknown - modules == set()


def test_run_directory_page_names_every_column_and_phase() -> None:
    text = (ROOT / "docs" / "run-directory.md").read_text()
    prompts, completions = text.split("## The prompts table")[1].split("## The completions table")
    for section, schema in ((prompts, PROMPTS_SCHEMA), (completions.split("## ")[0], COMPLETIONS_SCHEMA)):
        assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == schema.names
        nullable = re.findall(r"^\| `(\w+)` \| [^|]*\bor null\b", section, flags=re.MULTILINE)
        assert nullable == [field.name for field in schema if field.nullable]
    assert [phase for phase in PHASES if f"`{phase}`" not in text] == []


def test_readme_shows_the_first_two_commands_first() -> None:
    assert [block.strip() for block in code_blocks(ROOT / "README.md", "sh")[:2]] == ["make quickstart", "make test"]


def test_readme_links_every_recipe() -> None:
    text = (ROOT / "README.md").read_text()
    recipes = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
    assert [path.name for path in recipes if f"(configs/recipes/{path.name})" not in text] == []


def test_readme_reader_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a table of two rows in the place where a quickstart has its own."""
    [snippet] = [block for block in code_blocks(ROOT / "README.md", "python") if "duckdb" in block]
    row = {"prompt_id": "a", "sample_index": 0, "shard": 0, "status": "accepted", "prompt": '"1+1="', "completion": "2"}
    row |= {"answer": "2", "finish_reason": "stop", "num_prompt_tokens": 4, "num_completion_tokens": 7}
    other = row | {"prompt_id": "b", "status": "rejected", "reason": "wrong_answer"}
    monkeypatch.chdir(tmp_path)
    table = pa.Table.from_pylist([row, other], schema=COMPLETIONS_SCHEMA)
    write_deltalake("runs/quickstart/completions", table)
    exec(compile(snippet, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "wrong_answer" in printed
    assert "7.0" in printed


def test_python_on_the_pages_compiles(page: Path) -> None:
    for block in code_blocks(page, "python"):
        compile(block, str(page), "exec")
