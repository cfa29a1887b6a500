"""From model cards and expressions to entries of the policy."""

import re

import pytest

from configs.terms.naming import Card, name_license, read_card
from configs.terms.policy import Kind, load_policy

pytestmark = pytest.mark.unit


def entries(text: str, kind: Kind = Kind.MODEL) -> list[str | None]:
    return [each.entry for each in name_license(text, "test", kind, load_policy())]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("apache-2.0", ["apache-2.0"]),
        ("Apache-2.0", ["apache-2.0"]),
        ("llama3.1", ["llama-3.1-license-2024"]),
        ("LicenseRef-scancode-llama-3.1-license-2024", ["llama-3.1-license-2024"]),
        ("openrail++", ["openrail++"]),
        ("MIT AND Apache-2.0", ["mit", "apache-2.0"]),
        ("MIT AND My-Own", ["mit", None]),
        ("MIT OR Apache-2.0", [None]),
        ("MIT AND (Apache-2.0 OR CC-BY-NC-4.0)", [None]),
        ("other", [None]),
        ("a licence (", [None]),
        ("()", [None]),
        ("(and a-", [None]),
    ],
)
def test_licence_is_named_by_id_tag_or_expression(text: str, ids: list[str | None]) -> None:
    assert entries(text) == ids


def test_name_means_something_else_for_data() -> None:
    assert entries("odc-by", Kind.DATA) == ["odc-by-1.0"]
    assert entries("llama2", Kind.DATA) == [None]


@pytest.mark.parametrize(
    ("text", "card"),
    [
        ("---\nlicense: mit\nbase_model: a/b\n---\n# Model", Card(("mit",), ("a/b",))),
        ("---\nlicense: mit\nbase_model: [a/b, c/d]\n---", Card(("mit",), ("a/b", "c/d"))),
        ("---\nlicense: other\nlicense_name: qwen\n---", Card(("qwen",))),
        ("---\nlicense: other\n---", Card(("other",))),
        ("---\nlicense: [mit, other]\nlicense_name: qwen\n---", Card(("mit", "qwen"))),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n", Card(("mit",))),
        ("---\nlicense: mit\nbase_model:\n---", Card(("mit",))),
        ("---\n---\n# Model", Card()),
        ("# Model\nlicense: mit", Card()),
        ("", Card()),
    ],
)
def test_card_tells_licence_and_base(text: str, card: Card) -> None:
    assert read_card(text) == card


@pytest.mark.parametrize(
    ("matter", "problem"),
    [
        ("license: mit\nlicense: mit\nbase_model: a/b", r"no YAML \(found duplicate key"),
        ("license: [mit", "no YAML"),
        ("license: mit\ndate: 2024-13-45", "no YAML"),
        ("license: mit\nfree: !!bool perhaps", "no YAML"),
        ("license: mit\nnested: " + "[" * 5000, "no YAML"),
        ("- mit", "has no keys"),
        ("license: {name: mit}", "^license is neither a name nor a list of names"),
        ("license: 2.0", "^license is neither"),
        ("license: other\nlicense_name: 3.1", "^license_name is neither"),
        ("license: mit\nbase_model: [{name: a/b}]", "^base_model is neither"),
        ("license: mit\nbase_model: [[a/b]]", "^base_model is neither"),
    ],
)
def test_card_that_cannot_be_read_says_why(matter: str, problem: str) -> None:
    assert re.search(problem, read_card(f"---\n{matter}\n---\n").problem or "")


def test_what_an_odd_card_does_say_counts() -> None:
    card = read_card("---\nlicense: mit\nbase_model: [a/b, {name: c/d}]\n---")
    assert (card.licenses, card.base_models) == (("mit",), ("a/b",))
