"""Every recipe that ships loads, is accepted by ``plan`` as it is and without a network, and explains itself."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import run_command
from cluster.phases.generate import window_rows
from configs.load import load_run_config, parse_run_config
from configs.schema import RunConfig, TransferMode, VerifierName
from services.prompts import read_prompts
from services.verifiers import is_correct

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
DATA = sorted((ROOT / "configs" / "recipes" / "data").glob("*.jsonl"))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe as a user gives it: relative to the project's root, where the command starts."""
    monkeypatch.chdir(ROOT)
    path: Path = request.param
    return path.relative_to(ROOT)


def refuse_connections(*_: object) -> None:
    raise AssertionError("`plan` wanted the network")


def test_recipe_loads_under_the_name_of_its_file(recipe: Path) -> None:
    config = load_run_config(recipe)
    assert config.name == recipe.stem
    assert parse_run_config(json.loads(config.model_dump_json()), "again") == config


def test_recipe_is_accepted_by_plan_which_writes_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket.socket, "connect", refuse_connections)
    run_dir = tmp_path / "run"
    assert run_command(["plan", str(recipe), f"run_dir={run_dir}"]) == 0
    printed = capsys.readouterr().out
    assert "0 duplicates" in printed
    assert str(run_dir) in printed
    assert not run_dir.exists()


def test_recipe_fits_the_models_context(recipe: Path) -> None:
    config = load_run_config(recipe)
    limit = config.teacher.engine.max_model_len
    if limit is None:
        return
    longest = max(config.sampling.max_tokens, config.sampling.retry_max_tokens or 0)
    assert longest < limit
    if config.evaluation is not None:
        assert config.evaluation.max_tokens < limit
    if config.student.transfer is TransferMode.TOKEN_IDS:
        assert limit <= config.training.sequence_length  # no row can be too long for the student


def test_recipe_evaluates_on_problems_that_are_no_prompts(recipe: Path) -> None:
    config = load_run_config(recipe)
    if config.evaluation is None or config.evaluation.source is None:
        return
    prompts = {prompt.prompt_id for prompt in read_prompts(config.prompts)}
    held_out = list(read_prompts(config.prompts.model_copy(update={"source": config.evaluation.source})))
    assert held_out
    assert all(problem.answer for problem in held_out)
    assert prompts.isdisjoint(problem.prompt_id for problem in held_out)


def test_recipe_keeps_its_clients_windows_full(recipe: Path) -> None:
    """A narrower window idles the teacher."""
    config = load_run_config(recipe)
    generation, teacher = config.generation, config.teacher
    rows_in_flight = generation.clients * window_rows(generation, teacher)
    assert rows_in_flight >= teacher.max_replicas * teacher.engine.max_num_seqs


def test_recipe_opens_with_the_command_that_runs_it(recipe: Path) -> None:
    opening = recipe.read_text().split("\nname:")[0]
    assert "stillhouse run " in opening
    assert all(line.startswith("#") for line in opening.splitlines())
    assert max(map(len, recipe.read_text().splitlines())) <= 120


@pytest.mark.parametrize("data", DATA, ids=lambda path: path.stem)
def test_sample_prompts_have_answers_that_the_verifier_understands(data: Path) -> None:
    for line in data.read_text().splitlines():
        row = json.loads(line)
        [message] = row["messages"]
        assert message["role"] == "user"
        assert is_correct(VerifierName.EXACT_ANSWER, f"so it is \\boxed{{{row['answer']}}}", row["answer"])


def test_own_data_recipe_takes_local_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The template's three paths replaced, as a user does: two model directories and a file of plain prompts."""
    monkeypatch.chdir(ROOT)
    for who in ("teacher", "student"):
        (tmp_path / who).mkdir()
        (tmp_path / who / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 4096}))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "One"}\n{"prompt": "Two"}\n{"prompt": "One"}\n')
    overrides = [
        f"teacher.model={tmp_path / 'teacher'}",
        f"student.model={tmp_path / 'student'}",
        f"prompts.source={tmp_path / 'prompts.jsonl'}",
    ]
    assert run_command(["plan", "configs/recipes/own-data.yaml", *overrides]) == 0
    assert "2 (1 duplicates) x 1 samples = 2 rows in 1 shards" in capsys.readouterr().out


def test_plan_of_a_recipe_through_the_program_needs_neither_torch_nor_vllm() -> None:
    """As its own process, from the project's root; what it imports is what a user waits for."""
    code = (
        "import sys; from cluster.cli import run_command; "
        "status = run_command(['plan', 'configs/recipes/one-gpu-8b-to-0.6b.yaml']); "
        "print(status, sorted({'torch', 'vllm', 'ray', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"


def test_recipes_cover_a_laptop_one_gpu_a_node_and_own_data() -> None:
    configs: dict[str, RunConfig] = {path.stem: load_run_config(path) for path in RECIPES}
    assert configs.keys() >= {
        "quickstart",
        "one-gpu-8b-to-0.6b",
        "qwen3-32b-to-1.7b",
        "gpt-oss-20b-to-qwen3-4b",
        "own-data",
    }
