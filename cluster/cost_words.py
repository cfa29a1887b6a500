"""The cost ledger in a few lines, for terminal, page and model card."""

from typing import Any

from cluster.cost import TOKENS_PER_WEIGHT


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """What a run came to; ``cost`` is what `cluster.cost.build_cost` returns."""
    usd, flops, scratch = cost["usd"], cost["flops"], cost["from_scratch"]
    lines = []
    if usd is not None:
        parts = [f"${usd:.4g} by the table of prices"]
        if cost["usd_per_accepted_row"] is not None:
            parts.append(f"${cost['usd_per_accepted_row']:.3g} an accepted row")
        if cost["usd_per_gap_point"] is not None:
            parts.append(f"${cost['usd_per_gap_point']:.3g} a point of the gap")
        lines.append(", ".join(parts))
    if flops["total"] is not None:
        lines.append(f"{flops['total']:.3g} operations, {flops['generate']:.3g} of them the teacher's answers")
    if scratch["student_ratio"] is not None:
        lines.append(
            f"distilling took {scratch['student_ratio']:.3g} of the operations of training a student of this size from "
            f"scratch on {TOKENS_PER_WEIGHT} tokens a weight"
        )
    if scratch["control_accuracy"] is not None and scratch["control_flops"] and scratch["distilled_flops"]:
        lines.append(
            f"trained without the teacher's steps the same student solves {scratch['control_accuracy']:.1%} after "
            f"{scratch['control_flops']:.3g} operations, distilled {scratch['distilled_accuracy']:.1%} after "
            f"{scratch['distilled_flops']:.3g}"
        )
    return lines
