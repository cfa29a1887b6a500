"""The cost ledger: what a run took in tokens, device-seconds, operations and dollars, and what it bought.

Times and tokens are what the phases recorded. Operations are 2 a weight and token where a model writes and 6 where it
learns (Kaplan et al. 2020, 2001.08361), without attention. Dollars are device-seconds by a table of prices. Whatever
is not known is null, and `assumptions` says what was taken for granted.
"""

import json
from dataclasses import asdict
from typing import Any

from upath import UPath

from cluster.context import RunContext
from cluster.models import made_teacher_dir, teacher_source
from cluster.phases.train import control_job, student_job
from cluster.run_dir import PHASES
from cluster.terms_sources import local_directory
from cluster.usage import Usage, find_usage, sum_usd
from cluster.weights import Weights, count_weights
from configs.prices import PriceTable
from configs.schema import RunConfig
from services.dataset import read_tokens_by_teacher
from training import storage
from training.job import TrainJob
from training.output import load_result

FORWARD, BACKWARD = 2, 4  # operations for each weight and token
FROZEN = 2  # of the backward pass through a weight that is not trained (LoRA)
TOKENS_PER_WEIGHT = 20  # Hoffmann et al. 2022, 2203.15556: how long a model is trained from scratch at the best price


def build_cost(ctx: RunContext, report: dict[str, Any], prices: PriceTable) -> dict[str, Any]:
    """The section ``cost`` of the report, of the phases that are done; docs/report.md documents each field."""
    records = {phase: ctx.run_dir.phase_record(phase) or {} for phase in PHASES}
    job = student_job(ctx)
    trained = storage.read_json(storage.join(job.output_dir, "job.json"))
    device = trained["device"] if trained else None
    tokens = {**_table_tokens(ctx), **_training_tokens(ctx, job)}
    weights = _weights(ctx, job)
    flops = count_flops(ctx.config, tokens, weights)
    done = {phase: record for phase, record in records.items() if record}
    usage = [use for phase, record in done.items() for use in find_usage(ctx.config, phase, record, device, prices)]
    usd = sum_usd(usage)
    gap = report["gap_closed"]
    return {
        "tokens": tokens,
        "weights": {name: asdict(each) if each else None for name, each in weights.items()},
        "flops": flops,
        "usage": [asdict(use) for use in usage],
        "usd": usd,
        "usd_per_accepted_row": _ratio(usd, report["ledger"]["accepted"]),
        "usd_per_gap_point": _ratio(usd, 100 * gap) if gap and gap > 0 else None,
        "from_scratch": compare(report, flops, weights),
        "prices": {
            name: prices.root[name].model_dump(mode="json", include={"usd_per_hour", "as_of", "source"})
            for name in sorted({use.device for use in usage if use.device in prices.root})
        },
        "assumptions": [*_assumptions(ctx.config, usage, weights), *_price_words(usage, prices)],
    }


def count_flops(
    config: RunConfig, tokens: dict[str, int], weights: dict[str, Weights | None]
) -> dict[str, float | None]:
    """Operations by what they were for; ``total`` is of distilling: the teacher's answers and the student's steps."""
    student = weights["student"]
    written = [
        _written(weights[f"teacher.{name}"], tokens[f"prompt.{name}"], tokens[f"completion.{name}"])
        for name in config.pool
        if f"prompt.{name}" in tokens
    ]
    frozen = config.student.lora is not None
    flops: dict[str, float | None] = {
        "generate": None if None in written else sum(each for each in written if each is not None),
        "train": _learnt(student, tokens["student_rows"], tokens["student_loss"], frozen),
    }
    if "control_rows" in tokens:
        flops["train_control"] = _learnt(student, tokens["control_rows"], tokens["control_loss"], frozen)
    if "made_teacher_rows" in tokens:
        made = weights[f"teacher.{config.main_teacher}"]
        flops["make_teacher"] = _learnt(made, tokens["made_teacher_rows"], tokens["made_teacher_loss"], False)
    distilled = (flops["generate"], flops["train"])
    return {**flops, "total": None if None in distilled else sum(each for each in distilled if each is not None)}


def compare(
    report: dict[str, Any], flops: dict[str, float | None], weights: dict[str, Weights | None]
) -> dict[str, Any]:
    """Distilled against trained from scratch: the control student, and what models of both sizes would take."""
    main = next(name for name in weights if name != "student")
    student, teacher = (_scratch(weights[name]) for name in ("student", main))
    accuracy = report["accuracy"] or {}
    return {
        "tokens_per_weight": TOKENS_PER_WEIGHT,
        "student_flops": student,
        "student_ratio": _ratio(flops["total"], student),
        "teacher_flops": teacher,
        "teacher_ratio": _ratio(flops["total"], teacher),
        "control_accuracy": accuracy.get("student_control"),
        "control_flops": flops.get("train_control"),
        "distilled_accuracy": accuracy.get("student_after"),
        "distilled_flops": flops["total"],
    }


def _written(weights: Weights | None, prompt: int, completion: int) -> float | None:
    if weights is None:
        return None
    return float(FORWARD * (weights.body * (prompt + completion) + weights.head * completion))


def _learnt(weights: Weights | None, rows: int, loss: int, frozen: bool) -> float | None:
    if weights is None:
        return None
    return float((FORWARD + (FROZEN if frozen else BACKWARD)) * (weights.body * rows + weights.head * loss))


def _scratch(weights: Weights | None) -> float | None:
    if weights is None:
        return None
    return float(FORWARD + BACKWARD) * weights.total * TOKENS_PER_WEIGHT * weights.total


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _table_tokens(ctx: RunContext) -> dict[str, int]:
    """Prompt and completion tokens of each teacher, of all rows in the table, whatever became of them."""
    counts: dict[str, int] = {}
    for teacher, (prompt, completion) in read_tokens_by_teacher(ctx.run_dir.completions_uri).items():
        counts |= {f"prompt.{teacher}": prompt, f"completion.{teacher}": completion}
    return counts


def _training_tokens(ctx: RunContext, student: TrainJob) -> dict[str, int]:
    """Of each job that is done: tokens of the rows it went through, prompts included, and those that bore a loss."""
    jobs = {"student": student.output_dir}
    if ctx.config.student.control:
        jobs["control"] = control_job(ctx).output_dir
    make = ctx.config.pool[ctx.config.main_teacher].make
    if make is not None:
        jobs["made_teacher"] = str(made_teacher_dir(make, ctx.run_dir) / "training")
    counts: dict[str, int] = {}
    for name, directory in jobs.items():
        result = storage.read_json(storage.join(directory, "result.json"))
        if result is not None:
            metrics = [json.loads(line) for line in storage.read_lines(storage.join(directory, "metrics.jsonl"))]
            rows = round(sum(each["tokens_per_s"] * each["seconds"] for each in metrics))
            counts |= {f"{name}_rows": rows, f"{name}_loss": result["loss_tokens"]}
    return counts


def _weights(ctx: RunContext, student: TrainJob) -> dict[str, Weights | None]:
    """Of each teacher, the main one first, and of the student as it was trained."""
    config = ctx.config
    found: dict[str, Weights | None] = {}
    for name in sorted(config.pool, key=lambda each: each != config.main_teacher):
        source = teacher_source(config, ctx.run_dir, name)
        directory = local_directory(source.model, source.revision) or (
            UPath(source.model) if config.pool[name].make is not None else None
        )
        found[f"teacher.{name}"] = count_weights(str(directory)) if directory is not None else None
    result = load_result(student)
    found["student"] = count_weights(result.hf_dir) if result is not None else None
    return found


def _price_words(usage: list[Usage], prices: PriceTable) -> list[str]:
    """Which prices were taken, from when and whom: a number of dollars says nothing without them."""
    devices = sorted({use.device for use in usage if use.device in prices.root})
    priced = [(name, prices.root[name]) for name in devices if name is not None]
    return [
        f"Price of {name}: ${price.usd_per_hour:g} an hour as of {price.as_of} ({price.source})."
        for name, price in priced
    ]


def _assumptions(config: RunConfig, usage: list[Usage], weights: dict[str, Weights | None]) -> list[str]:
    """Sentences on what the numbers take for granted in this run."""
    said = [
        "Seconds are of the attempt that finished each phase; what an interrupted one had used before is not in them.",
        "Operations are without attention, and in total without what made the teacher or the student's base.",
        "From scratch means six operations for each weight and token, on "
        f"{TOKENS_PER_WEIGHT} tokens a weight; it says nothing of what such a model would be able to do.",
    ]
    scaling = [name for name, teacher in config.pool.items() if teacher.min_replicas < teacher.max_replicas]
    if scaling:
        said.append(f"Teachers that scale ({', '.join(scaling)}) are counted with all their replicas all the time.")
    if config.training.min_workers < config.training.max_workers:
        said.append("Training is counted with the most workers that it may have.")
    if any(use.usd is None for use in usage):
        said.append(
            "There are no dollars: a GPU's type is not said (teacher.accelerator_type), or has no price in the table."
        )
    unknown = [name for name, each in weights.items() if each is None]
    if unknown:
        said.append(f"Operations of {', '.join(unknown)} are not known: its safetensors files are not on this machine.")
    return said
