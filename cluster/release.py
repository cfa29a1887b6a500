"""What licences want beside an exported student: NOTICE, copies of their texts, and the decision as terms.json."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.run_dir import PROJECT_ROOT
from cluster.terms_sources import local_directory
from configs.errors import UserError
from configs.terms.policy import Distribution, Entry, Kind, ObligationType, load_policy
from configs.terms.records import Decision, Duty
from configs.terms.texts import license_texts

# Apache-2.0 is this project's own licence, so its text is always at hand.
OWN_TEXTS = {"apache-2.0": PROJECT_ROOT / "LICENSE"}


@dataclass(frozen=True, slots=True)
class Texts:
    """Licence texts to pass on: files by their place below LICENSES/, and licences whose text was not found."""

    files: dict[str, Path]
    missing: tuple[str, ...]

    def digests(self) -> dict[str, str]:
        """SHA-256 of each, by its place."""
        return {place: hashlib.sha256(path.read_bytes()).hexdigest() for place, path in sorted(self.files.items())}


def find_texts(decision: Decision, given: Mapping[str, str]) -> Texts:
    """The texts that the recipe gives, that lie with the sources, or are this project's own.

    ``given`` is the recipe's ``terms.license_texts``.

    Raises:
        UserError: one that the recipe gives is not there, or of no licence that the policy has; or others get the
            student, and a text that has to be passed on with it is nowhere.
    """
    files = _given_texts(given)
    own = {each.partition("/")[0] for each in files}
    missing = set()
    revisions = {source.name: source.revision for source in decision.sources}
    for duty in decision.duties:
        if duty.obligation.type is not ObligationType.LICENSE_COPY or "data" in duty.obligation.applies_to:
            continue
        place = local_directory(duty.source, revisions.get(duty.source))
        texts = [*license_texts(place)] if place else []
        files |= {f"{_file_name(duty.source)}/{path.name}": path for path in texts}
        if duty.license in own:
            continue
        if duty.license in OWN_TEXTS:
            files[f"{duty.license}.txt"] = OWN_TEXTS[duty.license]
        elif not texts:
            missing.add(duty.license)
    if missing and decision.party.distribution is not Distribution.NONE:
        first, *more = sorted(missing)
        raise UserError(
            f"terms.license_texts: the text of {_name(first)} has to be passed on with the student, which others get "
            f"(terms.party.distribution={decision.party.distribution}), and it lies beside none of the models"
            f"{_address(first)}; save it to a file and add {first}: FILE there"
            + (f", and likewise {', '.join(more)}" if more else "")
        )
    return Texts(files, tuple(sorted(missing)))


def write_release(directory: Path, decision: Decision, student: str, texts: Texts) -> None:
    """Write NOTICE, LICENSES/ and terms.json."""
    (directory / "terms.json").write_text(json.dumps(decision.public_record(), indent=2) + "\n", encoding="utf-8")
    for place, path in texts.files.items():
        target = directory / "LICENSES" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (directory / "NOTICE").write_text(notice(decision, student, texts.missing), encoding="utf-8")


def notice(decision: Decision, student: str, missing: tuple[str, ...]) -> str:
    """The NOTICE file: what the student is made from, texts to be shown, and duties towards its users."""
    lines = [student, "", "Made from:"]
    for source in decision.sources:
        names = sorted({_name(each.entry) for each in source.statements if each.entry})
        base = f", base of {source.via}" if source.via else ""
        lines.append(f"- {source.role} {source.name}{base}: {', '.join(names) or 'licence waived'}")
    shown, duties = shown_texts(decision), asked_duties(decision)
    lines += ["", *shown] if shown else []
    lines += ["", "Whoever passes this model on or lets others use it:", *duties] if duties else []
    if missing:
        lines += ["", "Licence texts that belong into LICENSES/ and were not found where this model was made:"]
        lines += [f"- {_name(name)}{_address(name)}" for name in missing]
    return "\n".join(lines) + "\n"


def shown_texts(decision: Decision) -> list[str]:
    """What licences want to be shown, such as "Built with …", each once."""
    return list(dict.fromkeys(line for duty in decision.duties for line in _shown(duty)))


def asked_duties(decision: Decision) -> list[str]:
    """What licences want of whoever passes the student on, as lines of a list, each once."""
    return list(dict.fromkeys(line for duty in decision.duties if (line := _asked(duty))))


def _shown(duty: Duty) -> list[str]:
    match duty.obligation.type:
        case ObligationType.NOTICE_TEXT:
            return [duty.obligation.value or ""]
        case ObligationType.DISPLAY:
            return [duty.obligation.any_of[0]] if duty.obligation.any_of else []
    return []


def _asked(duty: Duty) -> str | None:
    value, whose = duty.obligation.value, f"({_name(duty.license)})"
    match duty.obligation.type:
        case ObligationType.USE_RESTRICTION_FLOWDOWN:
            return f"- agrees on the use restrictions with those users: {duty.obligation.url or value} {whose}"
        case ObligationType.AUP:
            return f"- keeps to the acceptable use policy {duty.obligation.url or value} {whose}"
        case ObligationType.ATTRIBUTION:
            return f"- {value} {whose}"
        case ObligationType.DISPLAY if value is not None:
            return f"- {value} {whose}"
        case ObligationType.LICENSE_COPY:
            return f"- adds a copy of {_name(duty.license)}"
        case ObligationType.SHARE_ALIKE:
            return f"- {value} {whose}"
    return None


def _given_texts(given: Mapping[str, str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for name, file in given.items():
        entries, path = load_policy().named(Kind.MODEL, name), Path(file).expanduser()
        if not entries:
            raise UserError(
                f"terms.license_texts: {name} is no licence that the policy has; `stillhouse terms list` has their ids"
            )
        if not path.is_file():
            raise UserError(f"terms.license_texts.{name}: there is no file {path}; give the licence's text")
        files |= {f"{entry.id}/{path.name}": path for entry in entries}
    return files


def _file_name(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "--", source).strip("-.")


def _entry(entry_id: str | None) -> Entry | None:
    return next((each for each in load_policy().entries if each.id == entry_id), None)


def _name(entry_id: str | None) -> str:
    entry = _entry(entry_id)
    return entry.name if entry else str(entry_id)


def _address(entry_id: str) -> str:
    entry = _entry(entry_id)
    return f" ({entry.url})" if entry and entry.url else ""
