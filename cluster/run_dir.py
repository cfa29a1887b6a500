"""The run directory: where each phase finds what the one before committed, on any fsspec URI.

Files are written under another name and renamed (object stores put them atomically as they are). A phase is done when
its record is there; a directory belongs to one configuration, and is refused to another.
"""

import json
import os
import tomllib
import uuid
from pathlib import Path
from typing import Any

from upath import UPath

from configs.errors import UserError
from configs.identity import differing_keys
from configs.load import dump_run_config, parse_run_config
from configs.schema import RunConfig

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PHASES = ("make_teacher", "plan", "generate", "seal", "hand_over", "train", "evaluate", "export")


def program_version() -> str:
    """Name and version of this program, as rows and releases have it."""
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"{project['name']} {project['version']}"


class RunDir:
    """Names and atomic writes; holds no state but the root."""

    def __init__(self, root: UPath) -> None:
        self.root = root

    @classmethod
    def of(cls, config: RunConfig) -> "RunDir":
        """The directory of a configuration: ``run_dir``, or ``runs/<name>`` under the project's root."""
        if config.run_dir is None:
            return cls(UPath(PROJECT_ROOT / "runs" / config.name))
        path = UPath(config.run_dir.removeprefix("file://"))
        return cls(path if path.protocol else UPath(Path(str(path)).resolve()))

    def uri(self, *parts: str) -> str:
        """A place in the directory as a string that fsspec, delta-rs and torch understand."""
        return str(self.root.joinpath(*parts))

    @property
    def prompts_uri(self) -> str:
        return self.uri("prompts")

    @property
    def completions_uri(self) -> str:
        return self.uri("completions")

    @property
    def student_hf(self) -> str:
        return self.uri("student", "hf")

    @property
    def cache(self) -> UPath:
        """What runs beside each other may share, such as home-made teachers."""
        return self.root.parent / ".cache"

    def claim(self, config: RunConfig) -> None:
        """Make the directory this configuration's own.

        Raises:
            UserError: it cannot be written, or belongs to a configuration that would make different things.
        """
        saved = self.read_text("config.json")
        if saved is not None:
            keys = differing_keys(self._parse(saved), config)
            if keys:
                raise UserError(
                    f"{self.root} belongs to a run that differs in {', '.join(keys)}; "
                    "go back to those values, or give this run a directory of its own with run_dir=..."
                )
        try:
            self.write_text("config.json", dump_run_config(config))
        except OSError as error:
            raise UserError(
                f"run_dir: {self.root} cannot be written ({error}); choose another with run_dir=..."
            ) from None

    def _parse(self, saved: str) -> RunConfig:
        try:
            return parse_run_config(json.loads(saved), self.uri("config.json"))
        except ValueError as error:
            raise UserError(
                f"{self.uri('config.json')} is not the configuration of a run ({error}); restore it, or give this run "
                "a directory of its own with run_dir=..."
            ) from None

    def read_text(self, *parts: str) -> str | None:
        try:
            return str(self.root.joinpath(*parts).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_text(self, name: str, text: str) -> None:
        """Write a file so that a reader sees the old or the new content, never a part."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(path, Path):  # an object store: a put is atomic
            path.write_text(text)
            return
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        temporary.write_text(text)
        os.replace(temporary, path)

    def read_json(self, *parts: str) -> Any:
        text = self.read_text(*parts)
        return None if text is None else json.loads(text)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def phase_record(self, phase: str) -> dict[str, Any] | None:
        """What a finished phase recorded, or None while it is unfinished."""
        record: dict[str, Any] | None = self.read_json("phases", f"{phase}.json")
        return record
