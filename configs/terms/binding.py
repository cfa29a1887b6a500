"""The gate where a model is loaded, a teacher by its replica or a student by its trainer: is it what was decided on?

That may be hours after the decision, on another machine; so they look at their own files, before anything is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from configs.errors import UserError
from configs.repository import COMMIT_LENGTH, is_commit, is_repository
from configs.terms.policy import Kind, load_policy
from configs.terms.texts import CARD, LICENSE_FILES, decided_texts, digests, read_texts


@dataclass(frozen=True, slots=True)
class Decided:
    """What a model was taken for: meanings of the statements about it (`Statement.meaning`), and its bases by name.

    A further base is let through where the policy knows it by one of ``base_licenses`` alone: those that were decided
    on, and that a base may have without a person's decision.

    Example: ``Decided(("apache-2.0",), ("Qwen/Qwen3-8B-Base",), ("apache-2.0",))``
    """

    meanings: tuple[str, ...]
    bases: tuple[str, ...] = ()
    base_licenses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """A model as it was decided on.

    ``texts`` are names and SHA-256 of the licence texts, or of the card where there are none; None where the decision
    saw none of its files. ``must_be_pinned`` wants a commit for repositories. ``decided`` is what it was decided by.

    Example: ``Binding("Qwen/Qwen3-8B", "0123…cdef", (("LICENSE", "9f2c…"),), must_be_pinned=True)``
    """

    model: str
    revision: str | None = None
    texts: tuple[tuple[str, str], ...] | None = None
    must_be_pinned: bool = False
    decided: Decided | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made of one, also after JSON turned its tuples into lists."""
        texts, decided = data["texts"], data["decided"]
        return cls(
            model=data["model"],
            revision=data["revision"],
            texts=None if texts is None else tuple((name, digest) for name, digest in texts),
            must_be_pinned=data["must_be_pinned"],
            decided=None if decided is None else Decided(**{key: tuple(value) for key, value in decided.items()}),
        )


def check_binding(binding: Binding) -> None:
    """Raise `UserError` when the model on this machine is not the one that was decided on."""
    local = Path(binding.model).expanduser()
    if local.is_dir():
        _check_texts(binding, local, complete=True)
        _check_told(binding, local)
    elif is_repository(binding.model):
        _check_revision(binding)
        snapshot = _fetch_texts(binding)
        if is_commit(binding.revision) and snapshot.name != binding.revision:
            raise UserError(
                f"{binding.model} at {snapshot.name} would be loaded, and {binding.revision} was decided on; "
                "take that revision out of the cache, or name the commit that is there"
            )
        _check_texts(binding, snapshot, complete=False)
        _check_told(binding, snapshot)


def _check_revision(binding: Binding) -> None:
    if binding.must_be_pinned and not is_commit(binding.revision):
        raise UserError(
            f"{binding.model} at {binding.revision!r} would be loaded, which may change; where others get the "
            f"student (terms.party.distribution) its revision must be a commit ({COMMIT_LENGTH} hex digits)"
        )


def _check_texts(binding: Binding, directory: Path, *, complete: bool) -> None:
    """Compare with what lies in the directory; ``complete`` says that the decision saw all of it."""
    if binding.texts is None:
        return
    decided = dict(binding.texts)
    found = digests(directory, decided)
    if complete:
        found |= decided_texts(directory)
    differing = [name for name in (*decided, *found) if found.get(name) != decided.get(name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{directory / name} has sha256 {found.get(name, 'of no file')}, and the licence of {binding.model} was "
            f"decided on with {decided.get(name, 'no such file')}; read it, and run the command again to decide anew"
        )


def _check_told(binding: Binding, directory: Path) -> None:
    """Compare with what the texts say that the decision did not see, because they were not on its machine."""
    decided = binding.decided
    if decided is None:
        return
    policy = load_policy()
    told = read_texts(directory, Kind.MODEL, policy)
    for statement in told.statements:
        if statement.meaning not in decided.meanings:
            said = statement.problem or f"{statement.origin} says {statement.meaning!r}"
            known = ", ".join(decided.meanings) or "nothing"
            raise UserError(
                f"{directory}: {said}, and the decision on {binding.model} knew {known}; name it in the recipe's terms "
                "(license), or download the model where the command is given, and decide anew"
            )
    for base in told.base_models:
        entries = {entry.id for entry in policy.of_repository(Kind.MODEL, base)}
        if base not in (binding.model, *decided.bases) and not (entries and entries <= set(decided.base_licenses)):
            raise UserError(
                f"{directory / CARD} names the base {base}, and {binding.model} was decided on without it; name it in "
                "the recipe's terms (base_models), or download the model where the command is given, and decide anew"
            )


def _fetch_texts(binding: Binding) -> Path:
    """The repository's snapshot on this machine with its licence texts; the weights come later."""
    from huggingface_hub import snapshot_download  # only repositories need it

    patterns = [*LICENSE_FILES, CARD]
    return Path(snapshot_download(binding.model, revision=binding.revision, allow_patterns=patterns))
