"""The secret behind a watermark. It is read from the environment or a file, and never written, logged or shown."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError

MIN_CHARACTERS = 32  # as hex digits, 128 bits; shorter ones could be found from the key's id by trying
KEY_ID_DIGITS = 16
ADVICE = "make one with `openssl rand -hex 32`"


@dataclass(frozen=True, slots=True, repr=False)
class WatermarkKey:
    """32 secret bytes. Its representation shows the id alone."""

    secret: bytes

    @classmethod
    def of(cls, text: str) -> "WatermarkKey":
        """The key that a secret text stands for; white space around it does not count."""
        return cls(hashlib.blake2b(text.strip().encode(), digest_size=32, person=b"stillhouse key").digest())

    @property
    def key_id(self) -> str:
        """16 hex digits that tell keys apart and do not give them away."""
        return hashlib.blake2b(self.secret, digest_size=KEY_ID_DIGITS // 2, person=b"stillhouse id").hexdigest()

    def decoy(self, number: int) -> "WatermarkKey":
        """A key that nobody has marked anything with; the same for the same number."""
        digest = hashlib.blake2b(number.to_bytes(8, "little"), key=self.secret, digest_size=32, person=b"decoy")
        return WatermarkKey(digest.digest())

    def __repr__(self) -> str:
        return f"WatermarkKey({self.key_id})"


def load_key(environment_name: str | None, file: str | Path | None, expected_id: str | None = None) -> WatermarkKey:
    """Read the key from a variable or, where one is named, from a file.

    Raises:
        UserError: it is not there, is too short, or is not the key with ``expected_id``.
    """
    text, place = _read(environment_name, file)
    if len(text.strip()) < MIN_CHARACTERS:
        raise UserError(
            f"the watermark's key in {place} must have at least {MIN_CHARACTERS} characters, and has "
            f"{len(text.strip())}; {ADVICE}"
        )
    key = WatermarkKey.of(text)
    if expected_id is not None and key.key_id != expected_id:
        raise UserError(
            f"{place} holds the watermark key {key.key_id}, and the key {expected_id} is wanted; give that one, or the "
            "id of this one where nothing was marked yet"
        )
    return key


def _read(environment_name: str | None, file: str | Path | None) -> tuple[str, str]:
    if file is not None:
        try:
            return Path(file).expanduser().read_text(encoding="utf-8"), f"the file {file}"
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UserError(f"the watermark's key file {file} cannot be read ({reason}); {ADVICE}") from None
    assert environment_name is not None
    text = os.environ.get(environment_name)
    if text is None:
        raise UserError(
            f"the watermark's key is not there: the environment variable {environment_name} is not set on this "
            f"machine; set it, or name a file; {ADVICE}"
        )
    return text, f"the environment variable {environment_name}"
