"""The command line of the gateway: keys are shown once, and the log's verdict is an exit status."""

import json
from pathlib import Path

import pytest

from cluster.cli import run_command
from cluster.gateway import admission_spec, check_gateway
from configs.errors import UserError
from configs.load import load_run_config
from configs.schema import RunConfig
from services.gateway.admission import Admission
from services.gateway.audit import LOG_FILE
from services.gateway.keys import KeyFile
from tests.unit.configs.trees import TREE, put
from tests.unit.services.gateway.gateway import GatewayConfig, add_key, make_spec, visit

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("sigterm_handler")]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(put(put(TREE, "run_dir", str(tmp_path / "run")), "gateway", {})))
    return str(path)


@pytest.fixture
def opened(recipe: str, tmp_path: Path) -> tuple[Path, RunConfig]:
    """Directory and recipe of a gateway that has been started and closed once."""
    directory, config = tmp_path / "run" / "gateway", load_run_config(recipe)
    add_key(directory)
    Admission(admission_spec(config)).close()
    return directory, config


def test_key_is_printed_once_listed_and_revoked(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--expires", "2999-12-31", "--model", "small", "--lifetime-tokens", "5000"]
    assert run_command(["gateway", "add-key", recipe, "ada", *options]) == 0
    secret = capsys.readouterr().out.strip()
    file = tmp_path / "run" / "gateway" / "keys.json"
    assert secret not in file.read_text()
    key = KeyFile(file).find(secret)
    assert key is not None
    assert (key.name, key.models, key.lifetime_tokens) == ("ada", ("small",), 5000)
    assert key.expires == "3000-01-01T00:00:00+00:00"  # after the whole of its last day
    assert run_command(["gateway", "list-keys", recipe]) == 0
    assert f"{key.key_id}  ada  counts  0 requests, 0 of 5,000 tokens used" in capsys.readouterr().out
    assert run_command(["gateway", "revoke-key", recipe, "ada"]) == 0
    assert run_command(["gateway", "list-keys", recipe]) == 0
    assert "ada  revoked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["add-key", "RECIPE", "ada", "--lifetime-tokens", "0"], "--lifetime-tokens must be at least 1, not 0"),
        (["revoke-key", "RECIPE", "ada"], "there is no key ada to revoke"),
        (["add-key", "RECIPE", "ada", "gateway="], "the recipe has no section gateway"),
        (["add-key", "RECIPE", "ada", "run_dir=memory://x"], "gateway.directory must be a local directory"),
        (["add-key", "RECIPE", "ada", "gateway.regions.allow=[DE]"], "gateway.regions.header must name"),
    ],
)
def test_mistake_with_keys_is_one_sentence(
    recipe: str, arguments: list[str], needle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["gateway", *(recipe if each == "RECIPE" else each for each in arguments)]) == 2
    assert needle in capsys.readouterr().err


def test_verdict_on_the_log_is_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "gateway"
    assert run_command(["gateway", "verify-log", str(directory)]) == 2
    admission = Admission(make_spec(directory, GatewayConfig()))
    admission.admit("nobody's", visit())
    admission.close()
    assert run_command(["gateway", "verify-log", str(directory)]) == 0
    assert "holds: 1 entries" in capsys.readouterr().out
    (directory / LOG_FILE).write_text("")
    assert run_command(["gateway", "verify-log", str(directory)]) == 2
    assert "entry 0 is missing: the anchor knows 1 entries" in capsys.readouterr().err


def test_log_whose_last_line_a_crash_cut_off_is_told_and_does_not_keep_the_gateway_from_starting(
    opened: tuple[Path, RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, config = opened
    with open(directory / LOG_FILE, "a") as file:
        file.write('{"entry":1,"event":"re')
    assert run_command(["gateway", "verify-log", str(directory)]) == 2
    assert "entry 1 is cut off; the gateway removes it when it starts" in capsys.readouterr().err
    check_gateway(config)
    Admission(admission_spec(config)).close()
    assert run_command(["gateway", "verify-log", str(directory)]) == 0
    (directory / LOG_FILE).write_text("")
    with pytest.raises(UserError, match="entry 0 is missing: the anchor knows 3 entries"):
        check_gateway(config)


def test_log_that_is_gone_with_its_anchor_is_missed_by_every_command(
    opened: tuple[Path, RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, config = opened
    (directory / LOG_FILE).unlink()
    Path(admission_spec(config).anchor).unlink()
    gone = "are gone, and the ledger knows 1 entries"
    assert run_command(["gateway", "verify-log", str(directory)]) == 2
    assert gone in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{gone}; put back what was there"):
        check_gateway(config)


def test_ledger_that_is_gone_gives_nobody_the_quota_anew(opened: tuple[Path, RunConfig]) -> None:
    directory, config = opened
    for file in directory.glob("ledger.sqlite*"):
        file.unlink()
    for start in (lambda: check_gateway(config), lambda: Admission(admission_spec(config))):
        with pytest.raises(UserError, match=r"the ledger .*ledger\.sqlite is gone, .* put it back from a copy"):
            start()
    assert not (directory / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("overrides", "needle"),
    [
        ([], "there is no key in"),
        (["gateway.terms=nowhere.txt"], "gateway.terms: nowhere.txt cannot be read"),
    ],
)
def test_serve_refuses_before_anything_starts(
    recipe: str, overrides: list[str], needle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["serve", recipe, *overrides]) == 2
    assert needle in capsys.readouterr().err
