"""Whether a text says, in the first person, that it is written by a certain maker's model: "I am ChatGPT".

Pure functions of text over the names and sentences of `configs.claims`. Names are found by their literal beginnings,
which most texts have none of; only around a name are sentences looked at. Precision goes before finding all: what is
quoted, told of others, asked or denied is no claim.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from configs.claims import ClaimTable, Kind, Language, Statement, load_claims

BEFORE = 200  # characters before a name in which its sentence begins
AFTER = 120  # and behind it, in which the sentence is recognised
SHOWN = 80  # characters of a claim that are quoted
# Between a sentence and the name in it, and behind the name.
OPENERS, CLOSERS = r"[\s\"“”„«「『《*_`]{0,4}", r"[\"“”»」』》*_`]{0,3}"
# A sentence begins where a line does, or behind a sign that opens no quotation and is not part of a word.
START = r"^\s*|[^\w\s\"“„«‹「『《'’‘`>&/@#=<]\s*"
# No \w: it has Chinese characters, which follow without a space. "-R1" is of a version, "-based" is not.
VERSION = (
    r"(?:[- ]?v?[0-9.]*[0-9][a-z]?)?(?:-[A-Z0-9](?:[A-Za-z0-9.]*[A-Za-z0-9])?)*"
    r"(?: (?:Turbo|Plus|Pro|Max|Sonnet|Opus|Haiku|mini|Instruct|Chat|Flash|Ultra))*"
)
QUOTES = (("“", "”"), ("«", "»"), ("„", "“"), ("「", "」"), ("『", "』"), ("《", "》"))
LITERAL = re.compile(r"[^\\\[\](){}?*+|.^$]+")  # the beginning of an expression that stands for itself


@dataclass(frozen=True, slots=True)
class Claim:
    """A maker's id, and the words that claim it.

    Example: ``Claim("anthropic", "I am Claude, an AI assistant made by Anthropic")``
    """

    maker: str
    words: str


@dataclass(frozen=True, slots=True)
class _Name:
    """A name, and what it begins with: in lower case, or as it is written where ``in_any_case`` is off."""

    maker: str
    kind: Kind
    beginning: str
    in_any_case: bool
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Sentence:
    kinds: tuple[Kind, ...]
    before: re.Pattern[str]
    after: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Compiled:
    names: tuple[_Name, ...]
    languages: tuple[tuple[re.Pattern[str], tuple[_Sentence, ...]], ...]
    """The cues of each language, and its sentences."""
    reported: re.Pattern[str]


def claimed_identity(text: str, own: frozenset[str] = frozenset()) -> Claim | None:
    """What the text claims to be, or None: a maker that is not in ``own`` before one that is."""
    first = None
    for claim in find_claims(text):
        if claim.maker not in own:
            return claim
        first = first or claim
    return first


def find_claims(text: str) -> Iterator[Claim]:
    """Every claim of a text, in the order of its names."""
    for start, end, name in sorted(_find_names(text), key=lambda found: (found[0], -found[1])):
        if words := _claiming_words(text, start, end, name.kind):
            yield Claim(name.maker, words)


def claims_in_column(texts: pa.Array, own: Sequence[frozenset[str]]) -> Iterator[tuple[int, Claim]]:
    """Places of a column of strings, and what is claimed there; ``own`` has the teacher's makers for each place.

    Arrow looks for the names, so a column without any costs next to nothing.
    """
    for place in pc.indices_nonzero(pc.match_substring_regex(texts, _any_beginning())).to_pylist():
        claim = claimed_identity(texts[place].as_py(), own[place])
        if claim is not None:
            yield place, claim


@cache
def _any_beginning() -> str:
    """What every text with a claim has, as an expression of RE2, which knows no look-around."""
    parts = {re.escape(name.beginning): name.in_any_case for name in _compile().names}
    exact = [each for each, in_any_case in parts.items() if not in_any_case]
    return f"{'|'.join(exact)}|(?i:{'|'.join(each for each, in_any_case in parts.items() if in_any_case)})"


def _find_names(text: str) -> Iterator[tuple[int, int, _Name]]:
    lower = text.replace("İ", "I").lower()  # the one letter that is two in lower case; places have to stay
    for name in _compile().names:
        within = lower if name.in_any_case else text
        start = within.find(name.beginning)
        while start >= 0:
            if found := name.pattern.match(text, start):
                yield start, found.end(), name
            start = within.find(name.beginning, start + 1)


def _claiming_words(text: str, start: int, end: int, kind: Kind) -> str | None:
    begin = max(0, start - BEFORE)
    for cues, sentences in _compile().languages:
        if not cues.search(text, begin, end + AFTER):
            continue
        for sentence in sentences:
            if kind not in sentence.kinds or not sentence.after.match(text, end, end + AFTER):
                continue
            lead = sentence.before.search(text, begin, start)
            if lead and not _is_anothers(text, lead.start("said")):
                return " ".join(text[lead.start("said") : end + SHOWN].split())[:SHOWN]
    return None


def _is_anothers(text: str, start: int) -> bool:
    """Whether what begins there is quoted, in code, or told behind "she said:"."""
    line = text[text.rfind("\n", 0, start) + 1 : start]
    if line.lstrip().startswith(">") or line.count('"') % 2 or line.count("`") % 2:
        return True
    if any(line.rfind(opening) > line.rfind(closing) for opening, closing in QUOTES):
        return True
    return bool(_compile().reported.search(line)) or text.count("```", 0, start) % 2 == 1


@cache
def _compile() -> _Compiled:
    table = load_claims()
    reported = "|".join(each for language in table.languages for each in language.reported)
    return _Compiled(
        tuple(_names(table)),
        tuple(
            (
                re.compile("|".join(language.cues)),
                tuple(_sentence(table, language, each) for each in language.statements),
            )
            for language in table.languages
        ),
        re.compile(rf"(?:{reported})\s?[:：,，]\s*\Z", re.IGNORECASE),
    )


def _names(table: ClaimTable) -> Iterator[_Name]:
    for maker in table.makers:
        for pattern in maker.models:
            yield _Name(maker.id, "model", _beginning(pattern).lower(), True, _bounded(f"(?i:{pattern}){VERSION}"))
        for name in maker.shared:
            yield _Name(maker.id, "shared", name, False, _bounded(re.escape(name) + VERSION))
        for name in maker.companies:
            yield _Name(maker.id, "company", name, False, _bounded(re.escape(name)))


def _beginning(pattern: str) -> str:
    found = LITERAL.match(pattern)
    assert found, f"{pattern} begins with no letter"
    literal = found[0]
    return literal[:-1] if pattern[len(literal) : len(literal) + 1] in ("?", "*") else literal


def _bounded(pattern: str) -> re.Pattern[str]:
    """Between what is no letter of theirs; Chinese has no spaces, so only the Latin ones count."""
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{pattern})(?![A-Za-z0-9_])")


def _sentence(table: ClaimTable, language: Language, statement: Statement) -> _Sentence:
    start = rf"(?:{START}|(?<!\w)(?:{'|'.join(language.starts)})[,，]?\s*)"
    if statement.opening:
        start = rf"\A[\s¡]*(?:(?:{'|'.join(language.greetings)})[^\w\"“„«]{{1,4}})?"
    before = table.expand(statement.before, language)
    return _Sentence(
        statement.of,
        re.compile(rf"{start}(?P<said>{before}){OPENERS}\Z", re.IGNORECASE | re.MULTILINE),
        re.compile(CLOSERS + table.expand(statement.after, language), re.IGNORECASE),
    )
