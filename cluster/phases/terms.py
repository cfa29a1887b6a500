"""TERMS: the gate before the first token. Nothing is started, trained or written for what may not be taught."""

from cluster.context import RunContext
from cluster.estimate import check_capacity
from cluster.preflight import check_sources
from cluster.terms import gate_plan
from configs.terms.records import Decision


def check_terms(ctx: RunContext) -> Decision:
    """Refuse what licences and terms do not allow; takes part of a second, so it is done by every command."""
    check_sources(ctx.config)
    with ctx.terms_work("plan"):
        decision = gate_plan(ctx.config)
    check_capacity(ctx.config, ctx.prices)
    if ctx.run_dir.phase_record("plan") is None:
        ctx.progress.say(
            f"terms: {decision.verdict.value.replace('_', ' ')} by policy {decision.policy_version}, "
            f"{len(decision.duties)} duties (`stillhouse terms explain RECIPE`)"
        )
    return decision
