"""The audit log proves deletions and changes, wherever they are made."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.gateway import GatewayConfig
from services.gateway.admission import LEDGER_FILE, Admission, Grant
from services.gateway.audit import LOG_FILE, AuditLog, default_anchor, verify
from services.gateway.ledger import read_audited
from tests.unit.services.full_disk import full_disk
from tests.unit.services.gateway.gateway import add_key, make_spec, visit

pytestmark = pytest.mark.unit


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With a log of five entries."""
    directory = tmp_path / "gateway"
    log = AuditLog(directory / LOG_FILE, default_anchor(directory))
    for number in range(5):
        log.append({"event": "settled", "tokens": number})
    log.close()
    return directory


def fault_of(directory: Path) -> str | None:
    return verify(directory / LOG_FILE, default_anchor(directory)).fault


def lines_of(directory: Path) -> list[str]:
    return (directory / LOG_FILE).read_text().splitlines(keepends=True)


def test_untouched_log_holds_and_is_continued(directory: Path) -> None:
    assert fault_of(directory) is None
    log = AuditLog(directory / LOG_FILE, default_anchor(directory))
    log.append({"event": "opened"})
    assert log.last.entries == 6
    log.close()
    assert fault_of(directory) is None


@pytest.mark.parametrize("gone", range(5))
def test_entry_that_is_gone_is_named(directory: Path, gone: int) -> None:
    lines = lines_of(directory)
    (directory / LOG_FILE).write_text("".join(lines[:gone] + lines[gone + 1 :]))
    assert (fault_of(directory) or "").startswith(f"entry {gone} is missing")


@pytest.mark.parametrize("changed", range(5))
def test_entry_that_was_changed_is_named(directory: Path, changed: int) -> None:
    lines = lines_of(directory)
    lines[changed] = lines[changed].replace('"tokens":', '"tokens":9')
    (directory / LOG_FILE).write_text("".join(lines))
    assert (fault_of(directory) or "").startswith(f"entry {changed} was changed")


def test_end_that_is_gone_is_found_by_the_anchor(directory: Path) -> None:
    (directory / LOG_FILE).write_text("".join(lines_of(directory)[:2]))
    assert fault_of(directory) == "entry 2 is missing: the anchor knows 5 entries"
    (directory / LOG_FILE).unlink()
    assert fault_of(directory) == "entry 0 is missing: the anchor knows 5 entries"


def test_log_that_was_written_anew_with_a_sound_chain_is_found_by_the_anchor(directory: Path, tmp_path: Path) -> None:
    forged = AuditLog(tmp_path / "forged.jsonl", tmp_path / "forged-anchor.json")
    for number in range(5):
        forged.append({"event": "settled", "tokens": 2 * number})
    forged.close()
    (tmp_path / "forged.jsonl").replace(directory / LOG_FILE)
    assert "the chain up to it may be forged" in (fault_of(directory) or "")


def test_log_without_its_anchor_does_not_hold(directory: Path) -> None:
    default_anchor(directory).unlink()
    assert "there is no anchor" in (fault_of(directory) or "")
    with pytest.raises(UserError, match="does not hold: there is no anchor"):
        AuditLog(directory / LOG_FILE, default_anchor(directory))


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The directory of a gateway that has been asked once."""
    secret = add_key(tmp_path / "used")
    admission = Admission(make_spec(tmp_path / "used", GatewayConfig()))
    grant = admission.reserve(secret, visit(), 4)
    assert isinstance(grant, Grant)
    admission.settle(grant, 9, "completed")
    admission.close()
    return tmp_path / "used"


def test_log_that_is_gone_with_its_anchor_is_missed_by_the_ledger(used: Path) -> None:
    (used / LOG_FILE).unlink()
    default_anchor(used).unlink()
    gone = "its entries and its anchor .* are gone, and the ledger knows 3 entries; put back what was there"
    with pytest.raises(UserError, match=gone):
        Admission(make_spec(used, GatewayConfig()))
    assert not (used / LOG_FILE).exists()


def test_end_that_is_gone_from_log_and_anchor_is_found_by_the_ledger(used: Path, tmp_path: Path) -> None:
    entries = [json.loads(line) for line in lines_of(used)]

    def forge(number: int) -> str | None:
        """A log of so many entries with a sound chain, and its anchor, in the place of the true ones."""
        log = AuditLog(tmp_path / f"{number}.jsonl", tmp_path / f"{number}.json")
        for entry in entries[:number]:
            log.append({key: value for key, value in entry.items() if key not in ("entry", "previous")} | {"tokens": 1})
        log.close()
        (tmp_path / f"{number}.jsonl").replace(used / LOG_FILE)
        (tmp_path / f"{number}.json").replace(default_anchor(used))
        return verify(used / LOG_FILE, default_anchor(used), read_audited(used / LEDGER_FILE)).fault

    assert forge(2) == "entry 2 is missing: the ledger knows 3 entries"
    assert "entry 2 was changed: the ledger has another hash of it" in (forge(3) or "")


def test_ledger_that_knows_no_log_yet_or_is_none_at_all(used: Path) -> None:
    with closing(sqlite3.connect(used / LEDGER_FILE)) as db:
        db.execute("DROP TABLE audit")
        db.commit()
    assert read_audited(used / LEDGER_FILE) is None
    Admission(make_spec(used, GatewayConfig())).close()
    known = read_audited(used / LEDGER_FILE)
    assert known is not None
    assert known.entries == 4
    (used / LEDGER_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"ledger\.sqlite cannot be read"):
        read_audited(used / LEDGER_FILE)


def test_line_that_a_crash_cut_off_is_removed_and_that_is_said(directory: Path) -> None:
    with open(directory / LOG_FILE, "a") as file:
        file.write('{"entry":5,"event":"re')
    AuditLog(directory / LOG_FILE, default_anchor(directory)).close()
    assert fault_of(directory) is None
    assert json.loads(lines_of(directory)[-1])["event"] == "torn_line_removed"


def test_line_that_a_crash_cut_off_hides_no_entry_that_is_gone(directory: Path) -> None:
    (directory / LOG_FILE).write_text("".join(lines_of(directory)[:3])[:-1])
    before = (directory / LOG_FILE).read_bytes()
    assert fault_of(directory) == "entry 2 is missing: the anchor knows 5 entries"
    with pytest.raises(UserError, match="entry 2 is missing"):
        AuditLog(directory / LOG_FILE, default_anchor(directory))
    assert (directory / LOG_FILE).read_bytes() == before  # evidence stays as it was found


def test_entry_that_the_disk_took_half_of_is_taken_back_and_the_log_goes_on(directory: Path) -> None:
    log = AuditLog(directory / LOG_FILE, default_anchor(directory))
    with full_disk((directory / LOG_FILE).stat().st_size + 10), pytest.raises(OSError, match="too large"):
        log.append({"event": "reserved"})
    assert fault_of(directory) is None
    log.append({"event": "settled"})
    log.close()
    assert fault_of(directory) is None
    assert [json.loads(line)["event"] for line in lines_of(directory)[5:]] == ["settled"]


def test_request_that_the_log_cannot_take_leaves_nothing_reserved(tmp_path: Path) -> None:
    secret, spec = add_key(tmp_path / "g", lifetime_tokens=100), make_spec(tmp_path / "g", GatewayConfig())
    admission = Admission(spec)
    log = tmp_path / "g" / LOG_FILE
    asked = visit(path="/" + "x" * 200_000)  # so that of all files the log alone outgrows the limit
    with full_disk(150_000), pytest.raises(OSError, match="too large"):
        admission.reserve(secret, asked, 4)
    assert isinstance(admission.reserve(secret, visit(max_tokens=100), 0), Grant)
    admission.close()
    [opened, reserved] = [json.loads(line) for line in log.read_text().splitlines()]
    assert (opened["event"], reserved["event"], reserved["tokens"]) == ("opened", "reserved", 100)


def test_text_that_is_no_character_is_logged_as_an_escape(directory: Path) -> None:
    log = AuditLog(directory / LOG_FILE, default_anchor(directory))
    log.append({"key_name": "\udcff"})
    log.close()
    assert fault_of(directory) is None
    assert json.loads(lines_of(directory)[-1])["key_name"] == "\udcff"


def test_entry_that_was_written_but_not_anchored_by_a_crash_is_no_fault(directory: Path) -> None:
    anchor = default_anchor(directory)
    before = anchor.read_text()
    log = AuditLog(directory / LOG_FILE, anchor)
    log.append({"event": "opened"})
    log.close()
    anchor.write_text(before)
    assert fault_of(directory) is None


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_logged_only_where_the_recipe_says_so(tmp_path: Path, log_prompts: bool) -> None:
    secret = add_key(tmp_path / "g")
    admission = Admission(make_spec(tmp_path / "g", GatewayConfig(log_prompts=log_prompts)))
    asked = visit(prompt="a secret of mine", prompt_sha256="1" * 64)
    assert admission.admit(secret, asked) is None
    grant = admission.reserve(secret, asked, 4)
    assert isinstance(grant, Grant)
    admission.settle(grant, 9, "completed")
    admission.close()
    text = (tmp_path / "g" / LOG_FILE).read_text()
    assert ("a secret of mine" in text) is log_prompts
    assert "1" * 64 in text
    assert secret not in text
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert events == ["opened", "reserved", "settled"]


def test_strangers_do_not_fill_the_log_and_refusals_of_a_key_come_once_a_minute(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "g", requests_per_minute=1)
    admission = Admission(make_spec(tmp_path / "g", GatewayConfig()))
    for _ in range(20):
        assert admission.admit("nobody's", visit()) is not None
        admission.admit(secret, visit())
    admission.close()
    events = [json.loads(line)["event"] for line in lines_of(tmp_path / "g")]
    assert events == ["opened", "refused"]
