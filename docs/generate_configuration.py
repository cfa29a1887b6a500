"""Writes docs/configuration.md from the models in configs/schema.py: every section and key, default, and meaning.

``python docs/generate_configuration.py`` rewrites the page; a unit test fails when it is out of date.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
sys.path.insert(0, str(ROOT))  # run as a script, Python looks in docs/ alone

from pydantic import BaseModel  # noqa: E402

from configs.identity import OPERATIONAL_KEYS  # noqa: E402
from configs.schema import RunConfig  # noqa: E402

BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
INTRODUCTION = """\
# Configuration

<!-- Made by `python docs/generate_configuration.py`. Edit the docstrings in configs/schema.py, not this page. -->

A run is described by one YAML file, its *recipe*. Three layers, each over the one before:

1. the defaults on this page;
2. the recipe, such as `configs/recipes/quickstart.yaml`;
3. overrides on the command line, `section.key=value`, as many as you like: `training.epochs=2`,
   `teacher.engine.max_num_seqs=64`, `'sampling.stop=["END"]'`. Values are YAML 1.2, so `1e-5` is a number and `true` a
   boolean; nothing after the `=` means unset.

Unknown keys are refused, with the nearest known one suggested. The resolved configuration is saved as `config.json` in
the run directory; JSON is YAML, so that file is a recipe as well.

**A run directory belongs to one configuration.** Keys that decide what a run makes may not change once it has begun:
the command is refused, and names the keys. Keys marked **↻** decide speed, place or bookkeeping only, and may be
changed between two commands of the same run.

Relative paths start at the directory that the command is given in.
"""


def render_page() -> str:
    """The whole page, ending in a newline. A section that occurs in several places is shown once."""
    places: dict[type[BaseModel], list[str]] = {}
    for prefix, model in walk(RunConfig, ""):
        places.setdefault(model, []).append(prefix)
    shown = [(min(prefixes, key=len), model, prefixes) for model, prefixes in places.items()]
    order = [prefix for prefix, _ in walk(RunConfig, "")]
    shown.sort(key=lambda each: order.index(each[0]))
    return "\n".join([INTRODUCTION, *(render_section(*each) for each in shown)])


def walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with its dotted prefix, in the order of the schema."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from walk(candidate, f"{prefix}{name}.")


def render_section(prefix: str, model: type[BaseModel], prefixes: list[str]) -> str:
    """One section: heading, docstring, and a table of its keys."""
    others = " and ".join(f"`{each.rstrip('.')}`" for each in prefixes if each != prefix)
    lines = [f"## `{prefix.rstrip('.')}`" if prefix else "## Top level", "", flatten(model.__doc__ or "")]
    if others:
        lines += ["", f"The same keys and defaults hold in {others}."]
    lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    schema = model.model_json_schema()
    for name, described in schema["properties"].items():
        key = prefix + name
        is_operational = key in OPERATIONAL_KEYS or prefix.split(".")[0] in OPERATIONAL_KEYS
        cells = [
            f"`{key}`" + (" **↻**" if is_operational else ""),
            render_type(described, schema.get("$defs", {})),
            render_default(described, is_required=name in schema.get("required", [])),
            flatten(model.model_fields[name].description or ""),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def render_type(described: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A key's type in a reader's words, with its bounds or choices."""
    variants = [each for each in described.get("anyOf", [described]) if each.get("type") != "null"]
    if len(variants) > 1:
        return " or ".join(render_type(each, definitions) for each in variants)
    schema = variants[0]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
        return " or ".join(f"`{each}`" for each in schema["enum"]) if "enum" in schema else "section"
    if schema["type"] == "object":
        return "mapping"
    if schema["type"] == "array":
        if "prefixItems" in schema:
            return f"pair of {schema['prefixItems'][0]['type']}s"
        choices = schema["items"].get("$ref")
        return "list of strings" if choices is None else f"list of {render_type(schema['items'], definitions)}"
    bounds = [f"{sign} {schema[keyword]:g}" for keyword, sign in BOUNDS.items() if keyword in schema]
    if "pattern" in schema:
        bounds.append(f"matches `{schema['pattern']}`")
    return ", ".join([schema["type"], *bounds])


def render_default(described: dict[str, Any], *, is_required: bool) -> str:
    """A key's default as YAML would say it."""
    if is_required:
        return "*required*"
    default = described.get("default", {})
    if default is None:
        return "unset"
    if "$ref" in described and isinstance(default, dict):
        return "as below"
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def flatten(docstring: str) -> str:
    """One line, with reStructuredText's double backticks as Markdown's single ones."""
    return re.sub(r"``?([^`]+)``?", r"`\1`", " ".join(docstring.split()))


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
