"""A release may be signed; one changed byte of manifest or signature, or another key, is refused by name."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cluster.cli import run_command
from cluster.context import RunContext
from cluster.phases.export import export
from cluster.progress import Progress
from cluster.release_manifest import SIGNATURE
from tests.unit.cluster.releases import make_student
from tests.unit.cluster.runs import make_run
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """An exported student that is not signed."""
    config = make_config(evaluation={"addition": {"num_problems": 500}}, run_dir=str(tmp_path / "run"))
    run_dir = make_run(tmp_path / "run")
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        make_student(ctx)
        export(ctx)
    return Path(run_dir.student_hf)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path, "mine")


@pytest.fixture
def signed(student: Path, keys: tuple[Path, Path]) -> Path:
    assert run_command(["sign", str(student), "--key", str(keys[0])]) == 0
    return student


def pem(key: Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def make_keys(directory: Path, name: str) -> tuple[Path, Path]:
    key, private, public = Ed25519PrivateKey.generate(), directory / f"{name}.pem", directory / f"{name}.pub.pem"
    private.write_bytes(pem(key))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def verify(directory: Path, public: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status, and the one line that was printed."""
    capsys.readouterr()
    code = run_command(["verify", str(directory), "--public-key", str(public)])
    printed = capsys.readouterr()
    [line] = (printed.out + printed.err).splitlines()
    return code, line


def test_signed_release_is_verified_by_its_public_key(
    signed: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = verify(signed, keys[1], capsys)
    assert code == 0
    assert ", signed by the key " in line  # behind the manifest's digest
    code, line = verify(signed.parent.parent, keys[1], capsys)  # a run, by its exported student
    assert code == 0
    assert "signed by the key " in line
    assert run_command(["verify", str(signed)]) == 0
    assert "not checked (--public-key)" in capsys.readouterr().out


def test_private_key_is_nowhere_in_the_run(signed: Path, keys: tuple[Path, Path]) -> None:
    secret = keys[0].read_bytes().splitlines()[1]
    files = [path for path in signed.parent.parent.rglob("*") if path.is_file()]
    assert signed / SIGNATURE in files
    assert [path for path in files if secret in path.read_bytes()] == []


def test_every_changed_byte_of_the_signature_is_refused_by_name(
    signed: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = (signed / SIGNATURE).read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        (signed / SIGNATURE).write_bytes(changed)
        code, line = verify(signed, keys[1], capsys)
        assert code == 1, f"byte {place}"
        # A changed digest in it reads as another manifest; everything else as a changed signature.
        assert SIGNATURE in line, f"byte {place}"


@pytest.mark.parametrize("name", ["version", "files"])
def test_manifest_that_was_written_anew_is_refused_by_name(
    name: str, signed: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever changes a file and its digest in the manifest still has no signature."""
    manifest = json.loads((signed / "MANIFEST.json").read_text())
    if name == "files":
        (signed / "NOTICE").unlink()
        manifest["files"] = [each for each in manifest["files"] if each["path"] != "NOTICE"]
    else:
        manifest["version"] = "another"
    (signed / "MANIFEST.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    assert run_command(["verify", str(signed)]) == 0  # without the key nobody can tell
    code, line = verify(signed, keys[1], capsys)
    assert code == 1
    assert "MANIFEST.json is not the one that was signed" in line


def test_another_key_and_no_signature_are_told_apart(
    student: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(student, keys[1], capsys)[1].endswith("MANIFEST.json.sig is missing: the release is not signed")
    assert run_command(["sign", str(student), "--key", str(make_keys(tmp_path, "other")[0])]) == 0
    code, line = verify(student, keys[1], capsys)
    assert code == 1
    assert "names the key" in line


def test_key_may_come_from_the_environment(
    student: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RELEASE_KEY", keys[0].read_text())
    assert run_command(["sign", str(student), "--key", "env:RELEASE_KEY"]) == 0
    assert verify(student, keys[1], capsys)[0] == 0


def test_changed_release_is_not_signed(
    student: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (student / "NOTICE").write_text("another")
    assert run_command(["sign", str(student), "--key", str(keys[0])]) == 2
    assert "only a release that is as its manifest says is signed" in capsys.readouterr().err
    assert not (student / SIGNATURE).exists()


def test_wrong_key_is_refused_in_one_sentence(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "curve.pem"
    other.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "locked.pem").write_bytes(pem(Ed25519PrivateKey.generate(), b"word"))
    for arguments, needle in (
        (["sign", str(signed), "--key", str(tmp_path / "nowhere")], "cannot be read"),
        (["sign", str(signed), "--key", "env:NO_SUCH_KEY"], "must be an Ed25519 private key in PEM"),
        (["sign", str(signed), "--key", str(other)], "must be an Ed25519 private key in PEM"),
        (["sign", str(signed), "--key", str(keys[1])], "must be an Ed25519 private key in PEM"),
        (["sign", str(signed), "--key", str(tmp_path / "locked.pem")], "is encrypted"),
        (["sign", str(tmp_path), "--key", str(keys[0])], "has no MANIFEST.json"),
        (["verify", str(signed), "--public-key", str(keys[0])], "must be an Ed25519 public key in PEM"),
        (["verify", str(signed), "--public-key", str(tmp_path / "nowhere")], "cannot be read"),
    ):
        capsys.readouterr()
        assert run_command(arguments) == 2
        printed = capsys.readouterr().err
        assert needle in printed
        assert printed.count("\n") == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_verifies_the_signature_of_the_manifest(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Nobody has to trust this program: the signature is a plain one of the manifest's bytes."""
    (tmp_path / "raw").write_bytes(base64.b64decode(json.loads((signed / SIGNATURE).read_text())["signature"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    command += ["-in", str(signed / "MANIFEST.json"), "-sigfile", str(tmp_path / "raw")]
    assert subprocess.run(command, capture_output=True, timeout=20).returncode == 0
