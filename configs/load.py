"""Reads a recipe, lays ``section.key=value`` overrides over it, and turns every mistake into one clear sentence."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from configs.errors import UserError
from configs.schema import RunConfig

# YAML 1.2, in which 1e-5 is a number; PyYAML speaks 1.1, in which it is a string.
_YAML = YAML(typ="safe", pure=True)


def load_run_config(recipe: str | Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Defaults < recipe < overrides.

    Raises:
        UserError: the recipe is missing or not YAML, or a key or value breaks a rule; names the key and the fix.
    """
    path = Path(recipe)
    if not path.is_file():
        raise UserError(f"there is no recipe {path}; configs/recipes/ holds the ones that ship")
    try:
        tree = _YAML.load(path.read_text())
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_first_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must be a mapping of sections such as teacher, prompts and student")
    for override in overrides:
        _apply_override(tree, override)
    return parse_run_config(tree, str(path))


def parse_run_config(tree: dict[str, Any], origin: str) -> RunConfig:
    """Validate a configuration tree; ``origin`` is named in errors."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(_explain(each) for each in error.errors())) from None


def dump_run_config(config: RunConfig) -> str:
    """The resolved configuration as JSON, which is YAML as well."""
    return config.model_dump_json(indent=2) + "\n"


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r} is not an override; write section.key=value, such as training.epochs=2")
    try:
        value = _YAML.load(text) if text else None
    except YAMLError as error:
        raise UserError(f"the value of {key} is not valid YAML: {_first_line(error)}") from None
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise UserError(f"{key}: {section} is a value, not a section")
        node = child
    node[leaf] = value


def _explain(error: Any) -> str:
    place = tuple(str(part) for part in error["loc"])
    key = ".".join(place)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{_suggestion(place)}"
        case "missing":
            return f"{key} is required"
        case "value_error":
            return ": ".join(filter(None, (key, str(error["ctx"]["error"]))))
        case _:
            rule = error["msg"].removeprefix("Input should be ")
            return f"{key} must be {rule}, not {error['input']!r}"


def _suggestion(place: tuple[str, ...]) -> str:
    *sections, leaf = place
    known = _keys_at(sections)
    if near := difflib.get_close_matches(leaf, known, n=1, cutoff=0.5):
        return f"; did you mean {'.'.join([*sections, near[0]])}?"
    return f"; {'.'.join(sections) or 'a recipe'} has {', '.join(known)}"


def _keys_at(sections: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for section in sections:
        if section in model.model_fields:  # and not a name of the recipe's own, as below teachers
            model = _section_type(model.model_fields[section].annotation)
    return list(model.model_fields)


def _section_type(annotation: Any) -> type[BaseModel]:
    """The section's class in an annotation such as ``MakeTeacherConfig | None``."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise AssertionError(annotation)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())
