"""The decision: the truth table of licences and terms, and what holds for any sources whatever."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.terms.decision import KINDS, evaluate
from configs.terms.policy import Distribution, Kind, ObligationType, Use, load_policy
from configs.terms.recipe import Party, Waiver
from configs.terms.records import Decision, Role, Source, Statement, Verdict
from tests.unit.configs.terms.sources import TODAY, decide, source, waiver

pytestmark = pytest.mark.unit

POLICY = load_policy()
SMALL: dict[str, Any] = {"monthly_active_users": 1000, "annual_revenue_usd": 10**6, "region": "US"}
RESEARCH, INTERNAL, COMMERCIAL = (SMALL | {"intended_use": use} for use in Use)
ALLOW, DUTIES, REVIEW, DENY = Verdict


def duties_of(decision: Decision, kind: ObligationType) -> set[str | None]:
    return {duty.obligation.value for duty in decision.duties if duty.obligation.type is kind}


# Teacher's licence, what the party says, and what it may do.
TEACHERS = [
    ("stillhouse-home-made", {}, ALLOW),
    ("own", {}, ALLOW),
    ("apache-2.0", {}, ALLOW),
    ("mit", {}, ALLOW),
    ("openmdw-1.0", {}, ALLOW),
    ("openmdw-1.1", {}, ALLOW),
    ("llama-2-license-2023", COMMERCIAL, DENY),
    ("llama-2-license-2023", RESEARCH, DENY),
    ("llama-2-license-2023", COMMERCIAL | {"student_family": "llama-2"}, DUTIES),
    ("llama-2-license-2023", COMMERCIAL | {"student_family": "llama-3"}, DENY),
    ("llama-3-2024", COMMERCIAL, DENY),
    ("llama-3-2024", COMMERCIAL | {"student_family": "llama-3"}, DUTIES),
    ("llama-3.1-license-2024", COMMERCIAL, DUTIES),
    ("llama-3.1-license-2024", COMMERCIAL | {"monthly_active_users": 700_000_000}, DUTIES),
    ("llama-3.1-license-2024", COMMERCIAL | {"monthly_active_users": 700_000_001}, DENY),
    ("llama-3.1-license-2024", {}, REVIEW),  # users not said
    ("llama-3.2-license-2024", COMMERCIAL, DUTIES),
    ("llama-3.2-license-2024", COMMERCIAL | {"region": "DE"}, DENY),  # perhaps a multimodal one
    ("llama-3.2-license-2024", COMMERCIAL | {"region": None}, REVIEW),
    ("llama-3.3-license-2024", COMMERCIAL | {"region": "EU"}, DUTIES),
    ("llama-4-cla-2025", COMMERCIAL, DUTIES),
    ("llama-4-cla-2025", COMMERCIAL | {"region": "FR"}, DENY),
    ("llama-4-cla-2025", COMMERCIAL | {"region": "GB"}, DUTIES),
    ("gemma-terms", COMMERCIAL, DUTIES),
    ("tongyi-qianwen-2023", COMMERCIAL, DENY),
    ("tongyi-qianwen-2023", COMMERCIAL | {"student_family": "qwen"}, DUTIES),
    ("qwen-license-2024", COMMERCIAL, DUTIES),
    ("qwen-license-2024", COMMERCIAL | {"monthly_active_users": 10**8 + 1}, DENY),
    ("qwen-license-2024", RESEARCH | {"monthly_active_users": 10**8 + 1}, DUTIES),
    ("qwen-research-license", RESEARCH, DUTIES),
    ("qwen-research-license", INTERNAL, REVIEW),
    ("qwen-research-license", COMMERCIAL, DENY),
    ("qwen3.8-max-license", COMMERCIAL, REVIEW),
    ("qwen-community-license-1.0", RESEARCH, REVIEW),
    ("mistral-research-0.1", RESEARCH, DUTIES),
    ("mistral-research-0.1", INTERNAL, DENY),
    ("mistral-research-0.1", COMMERCIAL, DENY),
    ("mistral-non-production-0.1", COMMERCIAL, DENY),
    ("mistral-modified-mit", COMMERCIAL, REVIEW),
    ("mistral-modified-mit", COMMERCIAL | {"annual_revenue_usd": 10**9}, DENY),
    ("deepseek-model-license-1.0", COMMERCIAL, DUTIES),
    ("bigscience-bloom-rail-1.0", COMMERCIAL, DUTIES),
    ("bigscience-openrail-m", COMMERCIAL, DUTIES),
    ("creativeml-openrail-m", COMMERCIAL, DUTIES),
    ("openrail++", COMMERCIAL, DUTIES),
    ("bigcode-openrail-m", COMMERCIAL, DUTIES),
    ("openrail", COMMERCIAL, REVIEW),
    ("falcon-llm-license", COMMERCIAL, DUTIES),
    ("falcon-180b-license", COMMERCIAL, REVIEW),
    ("cc-by-nc-4.0", COMMERCIAL, DENY),
    ("cc-by-nc-4.0", RESEARCH, DUTIES),
    ("nvidia-open-model-2025-04-28", COMMERCIAL, ALLOW),
    ("nvidia-nemotron-open-model-2025-12-15", COMMERCIAL, ALLOW),
    ("kimi-k2-modified-mit", COMMERCIAL, REVIEW),
    ("minimax-m2-modified-mit", COMMERCIAL, REVIEW),
    ("kimi-k3-license", COMMERCIAL, REVIEW),
    ("minimax-m3-community", COMMERCIAL, DENY),
    ("glm-5.3-license", COMMERCIAL | {"distribution": "service"}, ALLOW),
    ("glm-5.3-license", {"distribution": "service"}, REVIEW),  # revenue not said
    ("tencent-hunyuan-community", COMMERCIAL, REVIEW),
    ("tencent-hunyuan-community", COMMERCIAL | {"region": "KR"}, DENY),
    ("grok-2-community", RESEARCH, DENY),
    ("no-such-licence", RESEARCH, DENY),
    (None, RESEARCH, DENY),
]


@pytest.mark.parametrize(("entry", "party", "verdict"), TEACHERS)
def test_teacher_licence_decides(entry: str | None, party: dict[str, Any], verdict: Verdict) -> None:
    assert decide(source(entry), **party).verdict is verdict


SERVICES = [
    ("openai-services-agreement-2026-01-01", {}, DENY),
    ("openai-services-agreement-2026-01-01", {"competes_with": ["openai"]}, DENY),
    ("openai-services-agreement-2026-01-01", {"competes_with": []}, REVIEW),
    ("openai-consumer-terms", {"competes_with": []}, DENY),
    ("anthropic-commercial-terms-2025-06-17", {"competes_with": []}, DENY),
    ("google-gemini-api-2026-03-23", {"competes_with": ["google"]}, DENY),
    ("google-gemini-api-2026-03-23", {"competes_with": ["openai"]}, REVIEW),
    ("xai-enterprise-terms", {"competes_with": []}, DENY),
    ("mistral-commercial-terms-2026-09-25", {}, ALLOW),
    ("deepseek-open-platform-tos-2026-04-29", {}, ALLOW),
    ("alibaba-model-studio", {"competes_with": []}, DENY),
    ("kimi-consumer-terms", {"competes_with": []}, DENY),
    ("baidu-ai-cloud-international", {"competes_with": []}, DENY),
    ("cohere-terms", {"competes_with": []}, DENY),
    ("openrouter-terms", {}, REVIEW),
    ("azure-openai", {}, REVIEW),
]


@pytest.mark.parametrize(("entry", "party", "verdict"), SERVICES)
def test_service_terms_decide(entry: str, party: dict[str, Any], verdict: Verdict) -> None:
    assert decide(source(entry, Role.SERVICE), **party).verdict is verdict


@pytest.mark.parametrize(
    ("table", "kind"), [(TEACHERS, Kind.MODEL), (SERVICES, Kind.SERVICE)], ids=["models", "services"]
)
def test_entries_of_the_policy_are_all_in_the_truth_table(table: list[Any], kind: Kind) -> None:
    assert {each.id for each in POLICY.entries if each.kind is kind} <= {entry for entry, _, _ in table}


def test_service_and_model_are_a_meet() -> None:
    """An Apache model may teach; asked through a host whose terms forbid it, it may not."""
    model = source("apache-2.0")
    assert decide(model, source("deepseek-open-platform-tos-2026-04-29", Role.SERVICE)).verdict is ALLOW
    assert decide(model, source("alibaba-model-studio", Role.SERVICE)).verdict is DENY


def test_unpaid_tier_is_refused_where_only_the_paid_one_counts() -> None:
    entry = "google-gemini-api-2026-03-23"
    free, paid = (source(entry, Role.SERVICE, tier=tier) for tier in ("free", "paid"))
    reasons = [{finding.reason for finding in decide(each, competes_with=[]).findings} for each in (free, paid)]
    assert "only the paid tier counts" in reasons[0]
    assert "only the paid tier counts" not in reasons[1]


@pytest.mark.parametrize(
    ("entry", "party", "verdict"),
    [
        ("own", {}, ALLOW),
        ("stillhouse-addition", {}, ALLOW),
        ("cc0-1.0", {}, ALLOW),
        ("mit", {}, DUTIES),
        ("cc-by-sa-4.0", {}, DUTIES),
        ("cc-by-nc-4.0", {}, DENY),
        ("cc-by-nc-4.0", RESEARCH, DUTIES),
        ("cc-by-nd-4.0", {}, REVIEW),
        (None, {}, DENY),
    ],
)
def test_prompts_licence_decides(entry: str | None, party: dict[str, Any], verdict: Verdict) -> None:
    assert decide(source("apache-2.0"), source(entry, Role.PROMPTS), **party).verdict is verdict


@pytest.mark.parametrize(
    ("entry", "party", "verdict"),
    [
        ("apache-2.0", {}, DUTIES),
        ("llama-2-license-2023", COMMERCIAL, DUTIES),  # its ban is on teaching, not on being taught
        ("qwen-research-license", COMMERCIAL, DENY),
        ("qwen3.8-max-license", COMMERCIAL, REVIEW),
        ("gemma-terms", {}, DUTIES),
    ],
)
def test_student_base_licence_decides(entry: str, party: dict[str, Any], verdict: Verdict) -> None:
    assert decide(source("mit"), source(entry, Role.STUDENT), **party).verdict is verdict


def test_llama_teacher_names_its_student_and_leaves_the_duties_of_weights_alone() -> None:
    decision = decide(source("llama-3.1-license-2024"), **COMMERCIAL)
    assert duties_of(decision, ObligationType.NAME_PREFIX) == {"Llama"}
    assert duties_of(decision, ObligationType.NOTICE_TEXT) == set()
    base = decide(source("mit"), source("llama-3.1-license-2024", Role.STUDENT), **COMMERCIAL)
    assert duties_of(base, ObligationType.NAME_PREFIX) == {"Llama"}
    [notice] = duties_of(base, ObligationType.NOTICE_TEXT)
    assert notice is not None
    assert notice.startswith("Llama 3.1 is licensed under")


def test_multimodal_exclusion_spares_a_model_that_is_none() -> None:
    teacher = source("llama-3.2-license-2024", multimodal=False)
    assert decide(teacher, **(COMMERCIAL | {"region": "DE"})).verdict is DUTIES


@pytest.mark.parametrize("entry", ["gemma-terms", "deepseek-model-license-1.0", "bigscience-bloom-rail-1.0"])
def test_student_of_a_licence_that_flows_down_is_a_derivative_with_its_restrictions(entry: str) -> None:
    decision = decide(source(entry), **COMMERCIAL)
    assert decision.student_is_derivative
    types = {duty.obligation.type for duty in decision.duties}
    assert {ObligationType.USE_RESTRICTION_FLOWDOWN, ObligationType.LICENSE_COPY} <= types
    assert not decide(source("apache-2.0")).student_is_derivative


def test_base_of_an_mit_model_counts_as_the_model_does() -> None:
    teacher = source("mit", name="somebody/tuned")
    base = source("llama-3.1-license-2024", name="meta-llama/Llama-3.1-8B", via="somebody/tuned")
    decision = decide(teacher, base, **COMMERCIAL)
    assert decision.verdict is DUTIES
    assert duties_of(decision, ObligationType.NAME_PREFIX) == {"Llama"}
    assert decide(teacher, source("llama-2-license-2023", via="somebody/tuned"), **COMMERCIAL).verdict is DENY
    assert decide(teacher, source(None, via="somebody/tuned"), **COMMERCIAL).verdict is DENY


def test_statements_of_one_source_all_count() -> None:
    """A recipe that says apache-2.0 over a card that says llama2 is not believed, nor is a card that says more."""
    said = tuple(Statement(text=each, origin="test", entry=each) for each in ("apache-2.0", "llama-2-license-2023"))
    assert decide(source(None, statements=said), **COMMERCIAL).verdict is DENY
    unknown = (said[0], Statement(text="my-licence", origin="its README.md"))
    decision = decide(source(None, statements=unknown))
    assert decision.verdict is DENY
    assert "no entry for 'my-licence', as its README.md says" in decision.refusals[0].reason


def test_waiver_lifts_what_it_names_and_stays_visible() -> None:
    teacher = source("llama-2-license-2023")
    given_ = waiver(teacher, "llama-2-license-2023")
    decision = decide(teacher, waivers=(given_,), **COMMERCIAL)
    assert decision.verdict is DUTIES
    assert decision.refusals == ()
    assert [finding.waiver for finding in decision.findings if finding.verdict is DENY] == [given_]


def test_waiver_of_an_unknown_licence_lifts_it() -> None:
    teacher = source(None)
    assert decide(teacher, waivers=(waiver(teacher, "unknown"),)).verdict is DUTIES


@pytest.mark.parametrize(
    "given_",
    [
        waiver(source("llama-2-license-2023"), "llama-2-license-2023", expires=date(2026, 11, 23)),
        waiver(source("llama-2-license-2023"), "llama-3-2024"),
        waiver(source("llama-2-license-2023"), "unknown"),
        waiver(source("mit"), "llama-2-license-2023"),
    ],
)
def test_waiver_that_expired_or_names_something_else_lifts_nothing(given_: Waiver) -> None:
    assert decide(source("llama-2-license-2023"), waivers=(given_,), **COMMERCIAL).verdict is DENY


def test_waiver_counts_on_its_last_day() -> None:
    teacher = source("grok-2-community")
    assert decide(teacher, waivers=(waiver(teacher, "grok-2-community", expires=TODAY),)).verdict is DUTIES


def test_decision_survives_json_and_names_its_policy() -> None:
    decision = decide(source("gemma-terms"), source("cc-by-4.0", Role.PROMPTS), **COMMERCIAL)
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
    assert (decision.policy_version, decision.policy_digest) == (POLICY.version, POLICY.digest)
    assert decision.decided_on == TODAY


def sources_of_any_kind() -> st.SearchStrategy[Source]:
    def of_role(role: Role) -> st.SearchStrategy[Source]:
        ids = [each.id for each in POLICY.entries if each.kind is KINDS[role]]
        entries = st.one_of(st.none(), st.sampled_from([*ids, "no-such-licence"]))
        statements = st.lists(
            st.builds(Statement, text=st.just("x"), origin=st.just("test"), entry=entries), max_size=2
        )
        return st.builds(
            Source,
            role=st.just(role),
            name=st.sampled_from(["a", "b", "c"]),
            statements=statements.map(tuple),
            multimodal=st.sampled_from([None, False, True]),
            tier=st.sampled_from([None, "free", "paid"]),
        )

    return st.sampled_from(list(Role)).flatmap(of_role)


PARTIES = st.builds(
    Party,
    intended_use=st.sampled_from(Use),
    distribution=st.sampled_from(Distribution),
    region=st.sampled_from([None, "US", "DE", "EU", "KR"]),
    monthly_active_users=st.sampled_from([None, 0, 10**8, 10**9]),
    annual_revenue_usd=st.sampled_from([None, 0, 10**9, 10**11]),
    competes_with=st.sampled_from([None, (), ("openai",), ("google",)]),
    student_family=st.sampled_from([None, "llama-2", "llama-3", "qwen"]),
)
WAIVERS = st.lists(
    st.builds(
        Waiver,
        source=st.sampled_from(["a", "b", "c"]),
        license=st.sampled_from(["unknown", "llama-2-license-2023", "grok-2-community"]),
        document_sha256=st.just("a" * 64),
        approver=st.just("Counsel"),
        expires=st.sampled_from([date(2026, 1, 1), date(2027, 1, 1)]),
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(sources_of_any_kind(), max_size=4), sources_of_any_kind(), PARTIES, WAIVERS)
def test_further_source_never_makes_it_milder(
    sources: list[Source], further: Source, party: Party, waivers: list[Waiver]
) -> None:
    before = evaluate(sources, party, waivers, POLICY, TODAY)
    after = evaluate([*sources, further], party, waivers, POLICY, TODAY)
    assert after.verdict.severity >= before.verdict.severity
    assert set(before.duties) <= set(after.duties)
    assert after.student_is_derivative >= before.student_is_derivative


@settings(max_examples=60, deadline=None)
@given(st.lists(sources_of_any_kind(), max_size=4), PARTIES, WAIVERS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(
    sources: list[Source], party: Party, waivers: list[Waiver], random: Any
) -> None:
    shuffled, other = [*sources, *sources[:1]], list(waivers)
    random.shuffle(shuffled)
    random.shuffle(other)
    assert evaluate(shuffled, party, other, POLICY, TODAY) == evaluate(sources, party, waivers, POLICY, TODAY)


@settings(max_examples=60, deadline=None)
@given(st.lists(sources_of_any_kind(), min_size=1, max_size=4), PARTIES, WAIVERS)
def test_unknown_source_is_denied_unless_waived_by_name(
    sources: list[Source], party: Party, waivers: list[Waiver]
) -> None:
    waived = {each.source for each in waivers if each.license == "unknown" and each.expires >= TODAY}
    decision = evaluate(sources, party, waivers, POLICY, TODAY)
    unknown = [
        each
        for each in sources
        if not each.statements or any(said.entry in (None, "no-such-licence") for said in each.statements)
    ]
    if any(each.name not in waived for each in unknown):
        assert decision.verdict is DENY


@settings(max_examples=60, deadline=None)
@given(st.lists(sources_of_any_kind(), max_size=4), PARTIES, WAIVERS)
def test_only_a_waiver_makes_it_milder(sources: list[Source], party: Party, waivers: list[Waiver]) -> None:
    bare = evaluate(sources, party, [], POLICY, TODAY)
    waived = evaluate(sources, party, waivers, POLICY, TODAY)
    assert waived.verdict.severity <= bare.verdict.severity
    if waived.verdict is not bare.verdict:
        assert any(finding.waiver is not None for finding in waived.findings)
