"""The run's report: ``report.json`` with documented fields and ``report.html`` that tells the same with plots.

Every number is one that a phase recorded; the report measures nothing of its own.
"""

from collections import Counter
from typing import Any

from deltalake import DeltaTable
from upath import UPath

from cluster.claims import claim_words
from cluster.context import RunContext
from cluster.cost import build_cost
from cluster.cost_words import cost_lines
from cluster.phases.train import student_job
from cluster.run_dir import PHASES, RunDir
from cluster.run_estimate import FILE as ESTIMATE_FILE
from cluster.run_estimate import compare_estimate, estimate_lines
from cluster.usage import Usage
from configs.errors import UserError
from services.dataset import read_rows_by_teacher, read_tokens_by_teacher

SCHEMA_VERSION = 1


def build_report(run_dir: RunDir, name: str) -> dict[str, Any]:
    """The report of a finished run; docs/report.md documents each field.

    Raises:
        UserError: a phase has not been done yet; names it.
    """
    records = {phase: run_dir.phase_record(phase) for phase in PHASES}
    for phase in ("plan", "generate", "seal", "train"):
        if records[phase] is None:
            raise UserError(f"{run_dir.root} has no report yet: phase {phase} is not done; run the same command again")
    seconds = {phase: record["seconds"] for phase, record in records.items() if record is not None}
    overlap = _read_overlap(run_dir, seconds)
    in_common_s = _in_common(overlap, seconds, ("generate", "seal", "hand_over", "train"))
    evaluation = records["evaluate"] or {}
    train = (records["train"] or {})["student"]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "ledger": (records["seal"] or {})["ledger"],
        "accuracy": evaluation.get("accuracy"),
        "gap_closed": evaluation.get("gap_closed"),
        "evaluation_problems": evaluation.get("problems"),
        "tokens": {"teacher_output": _teacher_tokens(run_dir), "student_loss": train["loss_tokens"]},
        "training": {key: train[key] for key in ("num_steps", "final_loss", "evaluation_loss", "rows", "packing_fill")},
        "engine": (records["generate"] or {}).get("engine"),
        "teachers": read_rows_by_teacher(run_dir.completions_uri),
        "quarantined": (records["train"] or {}).get("quarantined", []),
        "claims": (records["seal"] or {}).get("claims"),
        "seconds": {**seconds, "total": round(sum(seconds.values()) - in_common_s, 3)},
        "overlap": overlap,
        "terms_cost": _terms_cost(records, sum(seconds.values()) - in_common_s),
    }


def _read_overlap(run_dir: RunDir, seconds: dict[str, float]) -> dict[str, float] | None:
    """What phases side by side came to; None where they were not, in the commands that finished them."""
    record = run_dir.phase_record("overlap")
    if record is None or (record["generate_s"], record["train_s"]) != (seconds["generate"], seconds["train"]):
        return None
    return {key: record[key] for key in ("makespan_s", "first_step_s", "in_turn_s", "split_s")}


def _in_common(overlap: dict[str, float] | None, seconds: dict[str, float], phases: tuple[str, ...]) -> float:
    """The seconds of ``phases`` that would be counted twice."""
    if overlap is None:
        return 0.0
    return max(0.0, sum(seconds.get(phase, 0.0) for phase in phases) - overlap["makespan_s"])


def build_costed_report(ctx: RunContext) -> dict[str, Any]:
    """The report with its ``cost`` by the prices that the recipe names, and ``estimate`` against what happened."""
    report = build_report(ctx.run_dir, ctx.config.name)
    cost = build_cost(ctx, report, ctx.prices)
    usage = [Usage(**use) for use in cost["usage"]]
    in_common_s = _in_common(report["overlap"], report["seconds"], ("generate", "train"))
    estimate = compare_estimate(ctx.run_dir.read_json(ESTIMATE_FILE), report["seconds"], usage, in_common_s)
    return {**report, "cost": cost, "estimate": estimate}


def write_report(ctx: RunContext) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html``; returns the report."""
    from cluster.report_page import render_page

    report = build_costed_report(ctx)
    if ctx.run_dir.read_json("report.json") == report and ctx.run_dir.read_text("report.html") is not None:
        return report
    metrics = UPath(student_job(ctx).output_dir, "metrics.jsonl")
    if not metrics.exists():
        raise UserError(
            "the student learnt from rows that are not allowed any more; run `stillhouse train` again first"
        )
    page = render_page(report, metrics.read_text(), completion_lengths(ctx.run_dir))
    ctx.run_dir.write_text("report.html", page)
    ctx.run_dir.write_json("report.json", report)
    return report


def completion_lengths(run_dir: RunDir) -> dict[str, list[int]]:
    """Completion lengths (tokens) by status, read batch by batch from one column."""
    lengths: dict[str, list[int]] = {}
    dataset = DeltaTable(run_dir.completions_uri).to_pyarrow_dataset()
    for batch in dataset.to_batches(columns=["status", "num_completion_tokens"]):
        for status, tokens in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            lengths.setdefault(status, []).append(tokens)
    return lengths


def _terms_cost(records: dict[str, dict[str, Any] | None], total_s: float) -> dict[str, Any]:
    """What gates, lineage, cards and BOMs took, by name, and which part of all phases' time that is."""
    spent = Counter[str]()
    for record in records.values():
        spent.update((record or {}).get("terms_s", {}))
    seconds = {name: round(value, 4) for name, value in spent.items()}
    return {"seconds": seconds, "share": round(spent.total() / total_s, 5) if total_s else None}


def _teacher_tokens(run_dir: RunDir) -> int:
    return sum(completion for _, completion in read_tokens_by_teacher(run_dir.completions_uri).values())


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The report in the few lines that end a run on a terminal."""
    lines = []
    ledger = report["ledger"]
    parts = " + ".join(f"{ledger[key]:,} {key}" for key in ("accepted", "rejected", "failed", "pending"))
    lines.append(f"rows      {ledger['planned']:,} planned = {parts}")
    if accuracy := report["accuracy"]:
        shown = [
            f"{label} {accuracy[who]:.1%}"
            for who, label in (
                ("teacher", "teacher"),
                ("student_before", "student before"),
                ("student_after", "after"),
                ("student_control", "control (answers only)"),
            )
            if accuracy.get(who) is not None
        ]
        lines.append(f"accuracy  {', '.join(shown)}  ({report['evaluation_problems']} held-out problems)")
    if report["gap_closed"] is not None:
        lines.append(f"gap       {report['gap_closed']:.1%} closed")
    if report["claims"] and report["claims"]["makers"]:
        lines.append(f"claims    {claim_words(report['claims'])}")
    tokens = report["tokens"]
    lines.append(f"tokens    {tokens['teacher_output']:,} by the teacher, {tokens['student_loss']:,} into the student")
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items())
    lines.append(f"seconds   {seconds}")
    if overlap := report.get("overlap"):
        lines.append(
            f"overlap   {overlap['makespan_s']:.0f} s until the student had caught up, first step after "
            f"{overlap['first_step_s']:.0f} s; expected in turn {overlap['in_turn_s']:.0f} s, with the nodes split for "
            f"good {overlap['split_s']:.0f} s"
        )
    if taken := report["terms_cost"]["seconds"]:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in taken.items())
        lines.append(f"terms     {report['terms_cost']['share']:.2%} of that, {sum(taken.values()):.2f} s: {parts}")
    if cost := report.get("cost"):
        lines += _titled("cost", cost_lines(cost))
    if estimate := report.get("estimate"):
        lines += _titled("estimate", estimate_lines(estimate))
    return lines


def _titled(title: str, lines: list[str]) -> list[str]:
    return [f"{'' if number else title:10}{line}" for number, line in enumerate(lines)]
