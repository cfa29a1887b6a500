"""The secret key: where it is read from, what is told of it, and what is refused."""

import hashlib
from pathlib import Path

import pytest

from configs.errors import UserError
from services.watermark.key import WatermarkKey, load_key

pytestmark = pytest.mark.unit

SECRET = "0123456789abcdef0123456789abcdef"
VARIABLE = "TEST_WATERMARK_KEY"


def test_key_is_the_same_from_a_variable_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    (tmp_path / "key").write_text(f"{SECRET}\n")
    assert load_key(VARIABLE, None) == load_key(None, tmp_path / "key") == WatermarkKey.of(SECRET)


def test_id_and_representation_do_not_tell_the_key() -> None:
    key = WatermarkKey.of(SECRET)
    assert key.key_id == WatermarkKey.of(SECRET).key_id != WatermarkKey.of(SECRET + "0").key_id
    told = f"{key!r} {key} {key.key_id}"
    assert SECRET not in told
    assert key.secret.hex() not in told
    assert hashlib.sha256(SECRET.encode()).hexdigest()[:16] != key.key_id  # not what others may print of the secret


def test_decoys_are_keys_of_their_own() -> None:
    key = WatermarkKey.of(SECRET)
    ids = {key.key_id, *(key.decoy(number).key_id for number in range(100))}
    assert len(ids) == 101
    assert key.decoy(7) == key.decoy(7)


def test_missing_variable_is_told_with_its_name_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match=rf"{VARIABLE} is not set on this machine; set it, or name a file; make one"):
        load_key(VARIABLE, None)


def test_missing_file_and_file_without_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"key file .*nothing cannot be read \(No such file"):
        load_key(None, tmp_path / "nothing")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe" * 40)
    with pytest.raises(UserError, match="cannot be read \\(it is no text\\)"):
        load_key(None, tmp_path / "bytes")


def test_short_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, " correct horse ")
    with pytest.raises(UserError, match="must have at least 32 characters, and has 13") as refused:
        load_key(VARIABLE, None)
    assert "horse" not in str(refused.value)


def test_another_key_than_the_recorded_one_is_refused_with_both_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    key_id = WatermarkKey.of(SECRET).key_id
    assert load_key(VARIABLE, None, key_id).key_id == key_id
    with pytest.raises(UserError, match=rf"holds the watermark key {key_id}, and the key {'0' * 16} is wanted"):
        load_key(VARIABLE, None, "0" * 16)
