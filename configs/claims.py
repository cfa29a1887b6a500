"""How models say who they are: makers with their names, and sentences that claim one, from ``configs/claims.yaml``.

Data and its checks; `services.claims` looks for them in texts. Frozen, closed models, as the policy's are.
"""

import re
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from configs.errors import UserError
from configs.section import Section

SHIPPED = Path(__file__).with_name("claims.yaml")
COMPANY = "company"  # the word that stands for every company

Kind = Literal["model", "shared", "company"]


class Maker(Section):
    """Who makes models, and by which names they are known."""

    id: str
    name: str
    companies: tuple[str, ...]
    """The maker's own names, as they are written."""
    models: tuple[str, ...] = ()
    """Names of models: regular expressions, in any case."""
    shared: tuple[str, ...] = ()
    """Names of models that people and things have as well, as they are written."""
    repositories: tuple[str, ...] = Field(min_length=1)
    """Regular expressions, searched for in a model's name in lower case: it may call itself this maker's."""


class Statement(Section):
    """What stands before and after a name in a sentence that claims it: regular expressions with <words>."""

    of: tuple[Kind, ...] = Field(min_length=1)
    before: str
    after: str = ""
    opening: bool = False
    """The sentence begins the text, or follows a greeting there."""


class Language(Section):
    """Statements of one language, and what they are made of: regular expressions all of them."""

    language: str
    cues: tuple[str, ...] = Field(min_length=1)
    """What every statement has one of, near the name."""
    starts: tuple[str, ...]
    """Words that a sentence may begin behind."""
    greetings: tuple[str, ...]
    reported: tuple[str, ...]
    """Words behind which, with a comma or colon, somebody else's sentence begins."""
    words: dict[str, tuple[str, ...]]
    """Alternatives by name; they may use the words before them, and ``<company>``."""
    statements: tuple[Statement, ...]


class ClaimTable(Section):
    """All makers and languages, with their version."""

    version: str
    makers: tuple[Maker, ...]
    languages: tuple[Language, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids = [maker.id for maker in self.makers]
        if doubled := [each for each in ids if ids.count(each) > 1]:
            raise ValueError(f"the maker {doubled[0]} is there twice")
        for maker in self.makers:
            for pattern in (*maker.models, *maker.repositories):
                _check_pattern(pattern, f"maker {maker.id}")
        for language in self.languages:
            for cue in language.cues:
                _check_pattern(cue, f"language {language.language}")
            for statement in language.statements:
                for pattern in (statement.before, statement.after):
                    _check_pattern(self.expand(pattern, language), f"language {language.language}")
        return self

    def expand(self, pattern: str, language: Language) -> str:
        """A pattern of a language with its <words> put in; a word that is not there stays as it is."""
        companies = sorted((each for maker in self.makers for each in maker.companies), key=len, reverse=True)
        known = {COMPANY: f"(?-i:{'|'.join(map(re.escape, companies))})"}
        for name, alternatives in language.words.items():
            known[name] = f"(?:{'|'.join(_put_in(each, known) for each in alternatives)})"
        return _put_in(pattern, known)

    def makers_of(self, *models: str) -> frozenset[str]:
        """Ids of the makers that models of these repositories or directories may call themselves; empty for none.

        >>> sorted(load_claims().makers_of("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"))
        ['alibaba', 'deepseek']
        """
        names = ["/".join(model.lower().rstrip("/").split("/")[-2:]) for model in models]
        return frozenset(
            maker.id
            for maker in self.makers
            if any(re.search(pattern, name) for pattern in maker.repositories for name in names)
        )

    def name_of(self, maker_id: str) -> str:
        """A maker's name; of one that the table no longer has, its id."""
        return next((maker.name for maker in self.makers if maker.id == maker_id), maker_id)


@cache
def load_claims(path: Path = SHIPPED) -> ClaimTable:
    """Read the table.

    Raises:
        UserError: it breaks a rule of the schema; names the place.
    """
    tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    if (schema := tree.pop("schema", None)) != 1:
        raise UserError(f"{path}: schema must be 1, not {schema!r}")
    try:
        return ClaimTable.model_validate({**tree, "version": str(tree.get("version"))})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the table"
        raise UserError(f"{path}: {place}: {first['msg']}") from None


def _put_in(pattern: str, known: dict[str, str]) -> str:
    return re.sub(r"<([a-z_]+)>", lambda found: known.get(found[1], found[0]), pattern)


def _check_pattern(pattern: str, place: str) -> None:
    if unknown := re.search(r"<[a-z_]+>", pattern):
        raise ValueError(f"{place}: the word {unknown[0]} is none of its words")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{place}: {pattern!r} is no regular expression ({error})") from None
