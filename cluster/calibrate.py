"""Measures what a recipe's phases take: the run in miniature, through the same phases, engine and trainer.

It has a directory of its own that is gone afterwards, one replica of each teacher, a few prompts, a few steps. A
home-made teacher is trained for as few steps, so it knows nothing: its weights have the shape, and that decides speed.
"""

import json
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from cluster.calibration import Calibration, PhaseSpeed, TeacherSpeed, save_calibration
from cluster.capacity import decode_tokens_per_s
from cluster.context import RunContext
from cluster.estimate import student_shape, teacher_shape
from cluster.forecast import Lengths, expected_lengths
from cluster.model_shape import ModelShape
from cluster.models import made_teacher_dir
from cluster.phases.evaluate import evaluate
from cluster.phases.generate import generate
from cluster.phases.hand_over import hand_over
from cluster.phases.make_teacher import make_teacher
from cluster.phases.plan import plan
from cluster.phases.seal import seal_dataset
from cluster.phases.terms import check_terms
from cluster.phases.train import student_job, train
from cluster.progress import Progress
from cluster.run_dir import RunDir
from configs.load import parse_run_config
from configs.schema import Device, MakeTeacherConfig, Phases, RunConfig, TrainingConfig, TruncationPolicy, VerifierName
from services.dataset import read_rows_by_teacher, read_tokens_by_teacher
from training import storage
from training.job import StepMetrics, TrainResult

PHASES = (check_terms, make_teacher, plan, generate, seal_dataset, hand_over, train, evaluate)
STEPS, MOST_STEPS, LOG_EVERY = 30, 150, 5
# Operations of a training, tens of seconds of a CPU: what starts beside it slows the first seconds down, and few steps
# of a tiny model take no longer. Speed is that of the second half, without its last part, where the checkpoint is.
SETTLED = 1e12
WINDOWS = 4  # rows for so many times the sequences of an engine, so that it is full most of the time …
TOKENS = 200_000  # … but no more than so many tokens,
FEWEST_ROWS = 32  # and no fewer rows
NEVER = 10**9


def calibrate(config: RunConfig) -> Calibration:
    """Measure, keep it for `stillhouse plan` and `run`, and return it. Takes minutes, and the devices of a run.

    Raises:
        UserError: whatever would stop the run itself.
    """
    directory = RunDir.of(config).cache / "calibration" / f".{uuid.uuid4().hex}"
    miniature = make_miniature(config, str(directory / "run"))
    run_dir = RunDir.of(miniature)
    started = time.monotonic()
    try:
        with Progress(miniature.name, run_dir) as progress, RunContext(miniature, run_dir, progress) as ctx:
            for phase in PHASES:
                phase(ctx)
            measured = read_calibration(ctx)
            save_calibration(config, measured)
            progress.say(f"calibrated in {time.monotonic() - started:.0f} s")
    finally:
        storage.remove_tree(str(directory))
    return measured


def make_miniature(config: RunConfig, run_dir: str) -> RunConfig:
    """The recipe with few prompts, steps and problems, and one replica; no row that it makes is turned down."""
    tree = config.model_dump(mode="json")
    tree |= {"name": f"{config.name}-calibration", "run_dir": run_dir, "budget": {}}
    tree["acceptance"]["verifier"] = VerifierName.NONE.value
    tree["sampling"]["truncation"] = TruncationPolicy.KEEP.value
    tree["student"]["control"] = False
    tree["cluster"] |= {"phases": Phases.IN_TURN.value, "teacher_labels": {}, "student_labels": {}}
    _shorten(tree["training"], student_shape(config))
    for name in config.pool:
        teacher = tree["teachers"][name] if config.teachers else tree["teacher"]
        teacher |= {"min_replicas": 1, "max_replicas": 1, "deadline": None}
        if (make := teacher["make"]) is not None:
            make["min_accuracy"] = 0.0
            _shorten(make["training"], teacher_shape(config.pool[name]))
            # What knows nothing does not come to an end: it is stopped where its lessons end.
            tree["sampling"]["max_tokens"] = round(expected_lengths(config, name, 0, None).completion)
    rows = max(FEWEST_ROWS, min(WINDOWS * _sequences(config), TOKENS // tree["sampling"]["max_tokens"]))
    tree["prompts"]["limit"] = min(config.prompts.limit or NEVER, -(-rows // config.sampling.n))
    if (evaluation := config.evaluation) is not None:
        tree["evaluation"]["limit"] = min(evaluation.limit or NEVER, evaluation.batch_size)
    return parse_run_config(tree, "the recipe in miniature")


def _shorten(training: dict[str, Any], shape: ModelShape | None) -> None:
    """Few steps; checkpoint and held-back rows come at the end. Rows are not looked at: they need not make sense."""
    steps = STEPS
    if shape is not None:
        tokens = training["batch_tokens"] or training["batch_sequences"] * training["sequence_length"]
        steps = round(min(MOST_STEPS, max(STEPS, SETTLED / (6.0 * shape.active_weights * tokens))))
    training |= {"max_steps": steps, "log_every": LOG_EVERY, "check_rows": 0, "trackers": []}
    training |= {"checkpoint_every": NEVER, "evaluate_every": NEVER}


def _sequences(config: RunConfig) -> int:
    return max(teacher.engine.max_num_seqs for teacher in config.pool.values())


def read_calibration(ctx: RunContext) -> Calibration:
    """What the phases of the miniature recorded."""
    config, job = ctx.config, student_job(ctx)
    make = config.pool[config.main_teacher].make
    generated, evaluated = ctx.run_dir.phase_record("generate") or {}, ctx.run_dir.phase_record("evaluate")
    trained = storage.read_json(storage.join(job.output_dir, "job.json")) or {}
    return Calibration(
        measured_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        make_teacher=None if make is None else _read_made_teacher(ctx, make),
        generate_once_s=generated["seconds"] - generated["writing_s"],
        teachers={name: _read_teacher(ctx, name, speed) for name, speed in generated["tokens_per_s"].items()},
        train=read_steps(job.output_dir, job.training, (ctx.run_dir.phase_record("train") or {})["seconds"]),
        evaluate=None if evaluated is None else _read_evaluation(evaluated),
        student_device=trained["device"],
    )


def _read_made_teacher(ctx: RunContext, make: MakeTeacherConfig) -> PhaseSpeed:
    record = ctx.run_dir.phase_record("make_teacher") or {}
    return read_steps(str(made_teacher_dir(make, ctx.run_dir) / "training"), make.training, record["seconds"])


def _read_teacher(ctx: RunContext, name: str, tokens_per_s: float) -> TeacherSpeed:
    prompt, completion = read_tokens_by_teacher(ctx.run_dir.completions_uri)[name]
    rows = sum(read_rows_by_teacher(ctx.run_dir.completions_uri)[name].values())
    device = (ctx.run_dir.phase_record("generate") or {})["devices"][name]
    lengths = Lengths(prompt / rows, completion / rows)
    return TeacherSpeed(
        tokens_per_s=tokens_per_s * _gain(ctx, name, rows, lengths, device),
        prompt_tokens=lengths.prompt,
        completion_tokens=lengths.completion,
        device=device,
    )


def _gain(ctx: RunContext, name: str, rows: int, lengths: Lengths, device: str) -> float:
    """How much faster a full engine is than one with so few rows, by the formula; 1 where there were enough."""
    teacher = ctx.config.pool[name]
    price, shape = ctx.prices.cpu_core, teacher_shape(teacher)
    if device == Device.GPU:
        found = ctx.prices.find(teacher.accelerator_type or "")
        if found is None:
            return 1.0
        price = found
    if shape is None or rows >= teacher.engine.max_num_seqs:
        return 1.0
    count = teacher.engine.gpus_per_replica if device == Device.GPU else teacher.engine.threads
    length = lengths.prompt + lengths.completion / 2
    few = teacher.engine.model_copy(update={"max_num_seqs": rows})
    full_speed = decode_tokens_per_s(shape, teacher.engine, price, count, length)
    return full_speed / decode_tokens_per_s(shape, few, price, count, length)


def _read_evaluation(record: dict[str, Any]) -> PhaseSpeed:
    return PhaseSpeed(
        once_s=record["seconds"] - record["answering_s"], unit_s=record["answering_s"] / record["problems"]
    )


def read_steps(output_dir: str, training: TrainingConfig, phase_s: float) -> PhaseSpeed:
    """A phase's seconds for each full step, and once; from the metrics of the second half of its training."""
    result = TrainResult.from_dict(storage.read_json(storage.join(output_dir, "result.json")) or {})
    lines = [StepMetrics(**json.loads(line)) for line in storage.read_lines(storage.join(output_dir, "metrics.jsonl"))]
    settled = lines[len(lines) // 2 : -1]
    step_s = sum(each.seconds for each in settled) / (LOG_EVERY * len(settled))
    # Few rows may not fill a step.
    if training.batch_sequences is not None:
        tokens_per_s = sum(each.tokens_per_s * each.seconds for each in settled) / sum(each.seconds for each in settled)
        full = training.batch_sequences * training.sequence_length * result.packing_fill / (tokens_per_s * step_s)
    else:
        assert training.batch_tokens is not None
        loss_tokens = sum(each.loss_tokens_per_s * each.seconds for each in settled) / (LOG_EVERY * len(settled))
        full = training.batch_tokens / loss_tokens
    return PhaseSpeed(once_s=max(0.0, phase_s - lines[-1].step * step_s), unit_s=step_s * full)
