"""``stillhouse plan``: what a run of a recipe would do. Reads the prompts, starts nothing, writes nothing."""

import hashlib
from collections import Counter

from cluster.calibration import load_calibration
from cluster.estimate import check_capacity, memory_lines, read_shapes
from cluster.forecast import PhaseEstimate, Work, assumptions, estimate_phases, expected_lengths, overlapped_s
from cluster.models import is_teacher_made
from cluster.phases.plan import held_out_prompts
from cluster.preflight import check_sources
from cluster.run_dir import RunDir
from cluster.terms import gate_plan
from configs.errors import UserError
from configs.prices import PriceTable, load_prices
from configs.schema import RunConfig, TrainingConfig
from services.plan import prompts_per_shard
from services.prompts import read_prompts

IDS_COUNTED = 1_000_000  # beyond this, duplicates are left to PLAN itself, which counts them on disk


def print_plan(config: RunConfig) -> None:
    """Print shards, rows and the most tokens they can come to.

    Raises:
        UserError: something would stop the run before its first token.
    """
    check_sources(config)
    decision = gate_plan(config)
    prices = load_prices(config.cluster.prices)
    check_capacity(config, prices)
    run_dir, seen, rows, characters, asked = RunDir.of(config), set[bytes](), 0, 0, Counter[str | None]()
    for prompt in read_prompts(config.prompts, tuple(config.teachers)):
        rows, characters = rows + 1, characters + len(prompt.prompt)
        digest = hashlib.sha256(prompt.prompt_id.encode()).digest()[:8]
        asked[prompt.teacher] += digest not in seen
        if len(seen) < IDS_COUNTED:
            seen.add(digest)
    if rows == 0:
        raise UserError("prompts: the source has no prompts; it must have at least one row")
    held_out = 0
    if config.evaluation is not None:
        held_out = sum(1 for _ in held_out_prompts(config.evaluation, config.prompts))
    prompts = rows if rows > IDS_COUNTED else len(seen)
    samples = prompts * config.sampling.n
    size = prompts_per_shard(config.generation.shard_rows, config.sampling.n)
    shards = sum(-(-number // size) for number in asked.values())
    training = config.training
    lines = [
        f"run       {config.name} in {run_dir.root}",
        *(f"teacher   {_teacher(config, run_dir, name, asked[name])}" for name in config.pool),
        f"prompts   {prompts:,} ({rows - prompts:,} duplicates) x {config.sampling.n} samples = {samples:,} rows "
        f"in {shards:,} shards",
        f"held out  {f'{held_out:,} problems' if config.evaluation else 'none, so answers are not measured'}",
        f"tokens    at most {samples * config.sampling.max_tokens:,} by the teacher "
        f"(sampling.max_tokens={config.sampling.max_tokens})",
        *(f"replicas  {_replicas(config, name)}" for name in config.pool),
        f"student   {_student(config)}",
        f"training  {_workers(training)} workers, {_batch(training)} a step, "
        f"{f'{training.max_steps:,} steps' if training.max_steps else f'{training.epochs} epochs'}"
        f"{', beginning while the teacher writes' if config.is_overlapped else ''}",
        f"terms     {decision.verdict.value.replace('_', ' ')} by policy {decision.policy_version}, "
        f"{len(decision.duties)} duties (stillhouse terms explain)",
        *_estimate_lines(config, prices, asked, held_out, characters / rows),
    ]
    print("\n".join(lines))


def _estimate_lines(
    config: RunConfig, prices: PriceTable, asked: Counter[str | None], problems: int, characters: float
) -> list[str]:
    measured = load_calibration(config)
    work = Work(
        prompts={name: asked[name if config.teachers else None] for name in config.pool},
        lengths={name: expected_lengths(config, name, characters, measured) for name in config.pool},
        problems=problems,
        makes_teacher=not is_teacher_made(config, RunDir.of(config)),
    )
    phases = estimate_phases(config, prices, read_shapes(config), work, measured)
    lines = [f"memory    {line}" for line in memory_lines(config, prices)]
    lines += [f"expected  {_phase(each)}" for each in phases]
    total = words_of_total(phases, _phases_to_do(config, work), overlapped_s(config, work, phases))
    lines.append(f"expected  {total}")
    lines += [f"assumed   {line}" for line in assumptions(config, measured)]
    return lines


def _phases_to_do(config: RunConfig, work: Work) -> list[str]:
    """The phases of this run that take time and money, whether or not an estimate knows them."""
    make = config.pool[config.main_teacher].make
    first = ["make_teacher"] if make is not None and work.makes_teacher else []
    return [*first, "generate", "train", *(["evaluate"] if config.evaluation is not None else [])]


def words_of_total(phases: list[PhaseEstimate], to_do: list[str], in_common_s: float) -> str:
    """What the phases ``to_do`` take and cost together, of which two share ``in_common_s``.

    Where some are not known or have no price it is a lower bound, and says what it lacks.
    """
    usd = [each.usd for each in phases if each.usd is not None]
    unpriced = [each.phase for each in phases if each.usd is None]
    unknown = [phase for phase in to_do if phase not in {each.phase for each in phases}]
    lacking = [f"without the price of {' and '.join(unpriced)}, whose device has none"] if unpriced else []
    if unknown:
        why = "whose model or device is not known yet (plan --calibrate measures)"
        lacking.append(f"without {' and '.join(unknown)}, {why}")
    if not phases:
        return f"no total, {lacking[0]}"
    parts = [("at least " if unknown else "") + _time(sum(each.seconds for each in phases) - in_common_s)]
    if usd:
        parts.append(("at least " if lacking else "") + f"${sum(usd):,.4g}")
    return ", ".join([f"{' and '.join(parts)} together", *lacking])


def _phase(each: PhaseEstimate) -> str:
    usd = "no price" if each.usd is None else f"${each.usd:,.4g}"
    return f"{each.phase}: {each.tokens:,.0f} tokens on {each.devices} in {_time(each.seconds)}, {usd}"


def _time(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 3600:,.2f} hours"


def _batch(training: TrainingConfig) -> str:
    if training.batch_sequences is None:
        return f"{training.batch_tokens:,} loss tokens"
    return f"{training.batch_sequences * training.sequence_length:,} tokens"


def _workers(training: TrainingConfig) -> str:
    if training.min_workers == training.max_workers:
        return str(training.max_workers)
    return f"{training.min_workers} to {training.max_workers}"


def _teacher(config: RunConfig, run_dir: RunDir, name: str, prompts: int) -> str:
    teacher = config.pool[name]
    if teacher.make is None:
        model = f"{teacher.model} at {teacher.revision or 'its newest revision'}"
        return f"{name}, {model}, {prompts:,} prompts" if config.teachers else model
    made = is_teacher_made(config, run_dir)
    return "home-made, in the cache already" if made else "home-made, to be trained first"


def _replicas(config: RunConfig, name: str) -> str:
    teacher = config.pool[name]
    deadline = "" if teacher.deadline is None else f", to end in {teacher.deadline:,.0f} s"
    whose = f"{name}: " if config.teachers else ""
    return (
        f"{whose}{teacher.min_replicas} to {teacher.max_replicas}, tensor parallel "
        f"{teacher.engine.tensor_parallel_size}, {teacher.accelerator_type or 'no GPU type asked for'}{deadline}"
    )


def _student(config: RunConfig) -> str:
    if config.student.init is None:
        return f"{config.student.model} at {config.student.revision or 'its newest revision'}"
    arguments = ", ".join(f"{key} {value}" for key, value in config.student.init.arguments.items())
    return f"{config.student.init.model_type} from random weights ({arguments})"
