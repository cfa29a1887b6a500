"""From what is said of a licence to entries of the policy: identifiers, SPDX expressions, and model cards."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from license_expression import AND, LicenseSymbol, Licensing
from ruamel.yaml import YAML

from configs.terms.policy import Kind, Policy
from configs.terms.records import Statement

_FENCE = "---"
_READ = ("license", "license_name", "base_model")
_YAML = YAML(typ="safe", pure=True)
_LICENSING = Licensing()


@dataclass(frozen=True, slots=True)
class Card:
    """What a model card's front matter says: licences and the models it was made from.

    ``problem`` is what could not be read of it, so that there may be more than what was.
    """

    licenses: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    problem: str | None = None


def read_card(text: str) -> Card:
    """The front matter of a README.md; an empty card where it has none."""
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != _FENCE:
        return Card()
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == _FENCE), None)
    try:
        matter = _YAML.load("\n".join(lines[1:end])) or {}
    except Exception as error:  # a stranger's text, and the loader raises whatever its constructors run into
        return Card(problem=f"its front matter is no YAML ({_first_line(error)})")
    if not isinstance(matter, dict):
        return Card(problem="its front matter has no keys")
    licenses = _strings(matter.get("license"))
    if "other" in licenses:
        licenses = [
            *(each for each in licenses if each != "other"),
            *(_strings(matter.get("license_name")) or ["other"]),
        ]
    odd = next((key for key in _READ if not _is_strings(matter.get(key))), None)
    problem = f"{odd} is neither a name nor a list of names" if odd else None
    return Card(tuple(licenses), tuple(_strings(matter.get("base_model"))), problem)


def name_license(text: str, origin: str, kind: Kind, policy: Policy) -> Iterator[Statement]:
    """What a licence's name or an SPDX expression says, one statement for each entry that it names.

    All parts of an ``AND`` count. Of an ``OR`` the user has to say which part is chosen, so it names nothing.
    """
    parts = [text] if policy.named(kind, text) else _parts_of(text)
    for part in parts:
        entries = policy.named(kind, part)
        yield from (Statement(text=part, origin=origin, entry=entry.id) for entry in entries)
        if not entries:
            yield Statement(text=part, origin=origin)


def _parts_of(text: str) -> list[str]:
    try:
        parsed = _LICENSING.parse(text)
    except Exception:  # "()" is an IndexError; whatever cannot be parsed is a name that the policy does not have
        return [text]
    if isinstance(parsed, AND) and all(isinstance(each, LicenseSymbol) for each in parsed.args):
        return [str(each) for each in parsed.args]
    return [text]


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str) and each]


def _is_strings(value: Any) -> bool:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(each, str) for each in values)


def _first_line(error: Exception) -> str:
    return (str(getattr(error, "problem", None) or error).splitlines() or [type(error).__name__])[0]
