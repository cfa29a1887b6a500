"""The policy as data: every entry is complete, names what exists, and is looked at again in time."""

import warnings
from datetime import date, timedelta
from pathlib import Path

import pytest
from license_expression import get_spdx_licensing

from configs.errors import UserError
from configs.terms.policy import UNSTATED, Confidence, Entry, Kind, load_policy, stale

pytestmark = pytest.mark.unit

POLICY = load_policy()
ENTRY = """
- id: one
  name: One
  url: https://example.org
  effective: 2026-01-01
  verified_on: 2026-11-21
  confidence: primary
  outputs_for_training: allow
  clause: "2"
  summary: Anything goes.
"""


def _has_a_text(entry: Entry) -> bool:
    """Not so what the run makes, and what the party says is its own."""
    return entry.kind is Kind.SERVICE or not entry.spdx.startswith("LicenseRef-stillhouse-")


def write_policy(directory: Path, entries: str, kind: str = "model_license", version: str = "2026.1") -> Path:
    path = directory / f"{kind}.yaml"
    path.write_text(f"schema: 1\npolicy_version: {version}\nkind: {kind}\nentries:\n{entries}")
    return directory


@pytest.mark.parametrize("entry", POLICY.entries, ids=lambda entry: f"{entry.kind}-{entry.id}")
def test_entry_says_where_since_when_and_when_it_was_checked(entry: Entry) -> None:
    assert entry.verified_on <= date.today()
    assert entry.effective == UNSTATED or entry.effective <= entry.verified_on
    assert entry.summary.endswith(".")
    if _has_a_text(entry):
        assert entry.url
        # Who has read the text can say which clause it is.
        assert entry.clause != UNSTATED or entry.confidence is not Confidence.PRIMARY
    if entry.kind is not Kind.SERVICE:
        assert entry.spdx


def test_identifiers_are_spdx_or_scancode_or_private() -> None:
    known = get_spdx_licensing()
    for entry in POLICY.entries:
        is_private = entry.spdx is None or (
            entry.spdx.startswith("LicenseRef-") and not entry.spdx.startswith("LicenseRef-scancode-")
        )
        assert is_private or not known.validate(entry.spdx).errors, entry.id


@pytest.mark.parametrize(("days", "is_stale"), [(0, False), (180, False), (181, True)])
def test_entry_is_stale_after_180_days(days: int, is_stale: bool) -> None:
    entry = POLICY.entries[0]
    assert stale([entry], entry.verified_on + timedelta(days=days)) == ([entry] if is_stale else [])


def test_entries_older_than_half_a_year_are_warned_of() -> None:
    old = [f"{each.id} ({each.verified_on})" for each in stale(POLICY.entries, date.today())]
    if old:
        warnings.warn(f"look at these entries of the policy again: {', '.join(old)}", stacklevel=1)


def test_name_names_one_entry_of_a_kind() -> None:
    """Else a tag would say two things; what a repository is known by may be several, and all of them count."""
    for kind in Kind:
        names = [name for entry in POLICY.entries if entry.kind is kind for name in entry.names]
        assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("repository", "ids"),
    [
        ("Qwen/Qwen3-8B", {"apache-2.0"}),
        ("qwen/qwen3-8b", {"apache-2.0"}),
        ("openai/gpt-oss-20b", {"apache-2.0"}),
        ("Qwen/Qwen2.5-72B-Instruct", {"qwen-license-2024"}),
        ("Qwen/Qwen2.5-3B", {"qwen-research-license"}),
        ("google/gemma-3-27b-it", {"gemma-terms"}),
        ("google/gemma-4-31b-it", {"apache-2.0"}),
        ("meta-llama/Llama-3.3-70B-Instruct", {"llama-3.3-license-2024"}),
        ("meta-llama/Meta-Llama-3-8B", {"llama-3-2024"}),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", {"mit"}),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", {"mit", "llama-3.1-license-2024"}),
        ("deepseek-ai/DeepSeek-V3", {"deepseek-model-license-1.0"}),
        ("zai-org/GLM-5.3-Flash", {"mit"}),
        ("somebody/Qwen3-8B", set()),
    ],
)
def test_repository_is_known_by_its_publishers_name(repository: str, ids: set[str]) -> None:
    assert {entry.id for entry in POLICY.of_repository(Kind.MODEL, repository)} == ids


APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (APACHE, {"apache-2.0"}),
        ("MIT License\n\nCopyright (c) 2026 Somebody", {"mit"}),
        ("The MIT License (MIT)\n", {"mit"}),
        ("Modified MIT License\n", set()),
        (
            "LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date: July 18, 2023",
            {"llama-2-license-2023"},
        ),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\r\nMeta Llama 3 Version", {"llama-3-2024"}),
        ("**Llama 3.1 Community License Agreement**\n", {"llama-3.1-license-2024"}),
        ("# LLAMA 3.2\nCOMMUNITY LICENSE AGREEMENT", {"llama-3.2-license-2024"}),
        ("LLAMA 3.3 COMMUNITY LICENSE AGREEMENT", {"llama-3.3-license-2024"}),
        ("LLAMA 4 COMMUNITY LICENSE AGREEMENT", {"llama-4-cla-2025"}),
        ("LLAMA 5 COMMUNITY LICENSE AGREEMENT", set()),
        ("Gemma Terms of Use\n\nLast modified: April 1, 2026", {"gemma-terms"}),
        ("Tongyi Qianwen LICENSE AGREEMENT\n", {"tongyi-qianwen-2023"}),
        ("Tongyi Qianwen RESEARCH LICENSE AGREEMENT\n", {"tongyi-qianwen-2023", "qwen-research-license"}),
        ("Qwen LICENSE AGREEMENT\n\nQwen LICENSE AGREEMENT Release Date: September 19, 2024", {"qwen-license-2024"}),
        ("Qwen RESEARCH LICENSE AGREEMENT\n", {"qwen-research-license"}),
        ("DEEPSEEK LICENSE AGREEMENT\n\nVersion 1.0, 23 October 2023", {"deepseek-model-license-1.0"}),
        ("# Mistral AI Research License\n", {"mistral-research-0.1"}),
        ("# Mistral AI Non-Production License\n\n## 1. Scope and acceptance", {"mistral-non-production-0.1"}),
        (f"{APACHE}\n---\nLLAMA 2 COMMUNITY LICENSE AGREEMENT", {"apache-2.0", "llama-2-license-2023"}),
        ("It is not under the MIT License.\n", set()),
        ("\n" * 100_000, set()),
        ("", set()),
    ],
)
def test_licence_text_is_known_by_its_title(text: str, ids: set[str]) -> None:
    assert {entry.id for entry in POLICY.of_text(Kind.MODEL, text)} == ids


def test_digest_follows_content_and_not_form(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "three").mkdir()
    one = load_policy(write_policy(tmp_path / "one", ENTRY))
    two = load_policy(write_policy(tmp_path / "two", "# a comment\n" + ENTRY.replace("One", '"One"')))
    three = load_policy(write_policy(tmp_path / "three", ENTRY.replace("allow", "deny")))
    assert one.digest == two.digest != three.digest


@pytest.mark.parametrize(
    ("entries", "needle"),
    [
        (ENTRY.replace('  clause: "2"\n', ""), "entry 'one': clause: Field required"),
        (ENTRY.replace("  effective: 2026-01-01\n", ""), "entry 'one': effective: Field required"),
        (ENTRY.replace("2026-01-01", "once"), "entry 'one': effective"),
        (ENTRY.replace("allow", "alow"), "entry 'one': outputs_for_training"),
        (ENTRY + "  colour: blue\n", "entry 'one': colour"),
        (ENTRY + "  obligations: [{type: name_prefix, applies_to: [outputs]}]\n", "needs a value"),
        (ENTRY + "  obligations: [{type: aup, applies_to: []}]\n", "applies_to"),
        (ENTRY + "  conditions: [{type: mau_max}]\n", "needs a value"),
        (ENTRY + "  conditions: [{type: region_excluded}]\n", "needs regions"),
        (ENTRY + "  provider: someone\n", "name their provider"),
        (ENTRY.replace("allow", "same_family_only"), "needs a family"),
        (ENTRY + ENTRY, "model_license one is there twice"),
    ],
)
def test_broken_entry_is_refused_by_name(entries: str, needle: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=needle):
        load_policy(write_policy(tmp_path, entries))
