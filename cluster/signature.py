"""The signature of a released student: Ed25519 over the bytes of its ``MANIFEST.json``, and with it over every file.

Written beside the manifest by `stillhouse sign` and checked by `stillhouse verify --public-key`, offline. The private
key is named, read and forgotten: it is in no recipe, run directory or log.
"""

import base64
import hashlib
import json
import os
import posixpath
from pathlib import Path
from typing import Any

import fsspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from upath import UPath

from cluster.release_manifest import NAME, SIGNATURE, find_fault
from cluster.run_dir import RunDir
from configs.errors import UserError

SCHEMA = 1
FROM_ENVIRONMENT = "env:"


def sign_release(directory: str, key: str) -> str:
    """Write `SIGNATURE` with the private key of a PEM file, or of ``env:NAME``; returns the key's id.

    Raises:
        UserError: the directory is not as its manifest says, or there is no such key.
    """
    private = _private_key(key)
    release, manifest = _find_manifest(directory)
    if fault := find_fault(release):
        raise UserError(
            f"{release}: {fault}; only a release that is as its manifest says is signed, so export it again"
        )
    key_id = _key_id(private.public_key())
    RunDir(UPath(release)).write_text(SIGNATURE, _render(manifest, key_id, private.sign(manifest)))
    return key_id


def find_signature_fault(directory: str, public_key: Path) -> str | None:
    """Say what is wrong with a release's signature by the key of a PEM file, by name; None if nothing is.

    Raises:
        UserError: there is no release, or no such key.
    """
    public = _public_key(public_key)
    release, manifest = _find_manifest(directory)
    found = _read(release, SIGNATURE)
    if found is None:
        return f"{SIGNATURE} is missing: the release is not signed"
    try:
        told = json.loads(found)
        signature = base64.b64decode(told["signature"], validate=True)
        signed, key_id = told["manifest_sha256"], told["key_id"]
    except (ValueError, KeyError, TypeError):
        return f"{SIGNATURE} is not one that this program has written"
    try:
        public.verify(signature, manifest)
    except InvalidSignature:
        return _why_invalid(manifest, signed, key_id, _key_id(public), public_key)
    # Everything in it follows from manifest, key and signature, so not a byte of it may be another.
    return None if found == _render(manifest, _key_id(public), signature).encode() else f"{SIGNATURE} was changed"


def signing_key(directory: str) -> str | None:
    """Id of the key that a release says it was signed with; None for one that is not signed. Proves nothing."""
    try:
        told = json.loads(_read(_find_manifest(directory)[0], SIGNATURE) or b"{}")
    except ValueError:
        return None
    return told.get("key_id") if isinstance(told, dict) else None


def _why_invalid(manifest: bytes, signed: str, signer: str, key_id: str, file: Path) -> str:
    """The likeliest of what may differ; ``signed`` and ``signer`` are what the signature's file says."""
    digest = hashlib.sha256(manifest).hexdigest()
    if signer != key_id:
        return f"{SIGNATURE} names the key {signer}, and {file} is the key {key_id}"
    if signed != digest:
        return f"{NAME} is not the one that was signed: it has sha256 {digest}, and not {signed}"
    return f"{SIGNATURE} is no signature of {NAME} by the key {key_id}: it was changed"


def _render(manifest: bytes, key_id: str, signature: bytes) -> str:
    content = {
        "schema": SCHEMA,
        "algorithm": "ed25519",
        "key_id": key_id,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "signature": base64.b64encode(signature).decode(),
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _key_id(public: Ed25519PublicKey) -> str:
    """SHA-256 of the key's 32 bytes."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def _private_key(key: str) -> Ed25519PrivateKey:
    if key.startswith(FROM_ENVIRONMENT):
        text = os.environ.get(key.removeprefix(FROM_ENVIRONMENT), "").encode()
    else:
        text = _read_key(Path(key), "--key")
    try:
        private: Any = load_pem_private_key(text, password=None)
    except TypeError:
        raise UserError(
            f"--key ({key}) is encrypted; decrypt it into an environment variable and name env:NAME"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise UserError(
            f"--key ({key}) must be an Ed25519 private key in PEM; `openssl genpkey -algorithm ed25519` makes one"
        )
    return private


def _public_key(file: Path) -> Ed25519PublicKey:
    try:
        public: Any = load_pem_public_key(_read_key(file, "--public-key"))
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise UserError(
            f"--public-key ({file}) must be an Ed25519 public key in PEM; `openssl pkey -in KEY -pubout` prints it"
        )
    return public


def _read_key(file: Path, option: str) -> bytes:
    try:
        return file.expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{option} ({file}) cannot be read ({error.strerror}); name a file that has the key") from None


def _find_manifest(directory: str) -> tuple[str, bytes]:
    """The directory of a release, or that of a run's exported student, with its manifest."""
    for release in (directory.rstrip("/"), posixpath.join(directory.rstrip("/"), "student", "hf")):
        if (manifest := _read(release, NAME)) is not None:
            return release, manifest
    raise UserError(
        f"{directory} has no {NAME}; give the directory of an exported student (<run>/student/hf) or of a run"
    )


def _read(directory: str, name: str) -> bytes | None:
    filesystem, path = fsspec.url_to_fs(posixpath.join(directory, name))
    try:
        content: bytes = filesystem.cat_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content
