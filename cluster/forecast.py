"""How long a run's phases will take and what they will cost: by `cluster.capacity`'s formulas, or as was measured.

`stillhouse plan` prints it, a run keeps it as ``estimate.json`` and holds it against what then happened.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from cluster.calibration import Calibration, PhaseSpeed
from cluster.capacity import (
    BANDWIDTH_USE,
    DECODE_USE,
    PREFILL_USE,
    TRAINING_USE,
    decode_tokens_per_s,
    prefill_tokens_per_s,
    training_tokens_per_s,
)
from cluster.estimate import Shapes, student_uses_gpu, uses_gpu
from cluster.usage import accelerator_types, count_cores, find_usage, student_accelerator, sum_usd
from configs.prices import Price, PriceTable
from configs.schema import Device, EngineConfig, EvaluationConfig, RunConfig, TrainingConfig
from services.addition import draw_problems

EXPECTED_SHARE = 0.5  # of sampling.max_tokens
CHARACTERS_PER_TOKEN = 4.0
GPU_START_S, CPU_START_S = 180.0, 20.0  # from the demand to the first token or step, on nodes that are up
LESSONS_READ = 200  # of a home-made teacher, for the mean length of its answers


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a row."""

    prompt: float
    completion: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to do: prompts by teacher, the mean length of their rows, held-out problems."""

    prompts: dict[str, int]
    lengths: dict[str, Lengths]
    problems: int
    makes_teacher: bool
    """Whether a home-made teacher is not there yet."""


@dataclass(frozen=True, slots=True)
class PhaseEstimate:
    """Expected seconds and dollars of a phase; dollars are None where its devices have no price.

    Example: ``PhaseEstimate("generate", 8e6, 3600.0, 24.0, "8 H100")``
    """

    phase: str
    tokens: float
    seconds: float
    usd: float | None
    devices: str


def expected_lengths(config: RunConfig, name: str, characters: float, measured: Calibration | None) -> Lengths:
    """Mean length of a teacher's rows; ``characters`` is that of a prompt as it is stored.

    A home-made teacher writes what it was taught: the lengths are those of its lessons.
    """
    make = config.pool[name].make
    if make is not None:
        lessons = list(islice(draw_problems(make.addition, held_out=False), LESSONS_READ))
        # A token each, and one at the beginning or the end.
        prompt = sum(len(each.prompt) for each in lessons) / len(lessons) + 1
        return Lengths(prompt, sum(len(each.solution) for each in lessons) / len(lessons) + 1)
    if measured is not None and (speed := measured.teachers.get(name)) is not None:
        return Lengths(speed.prompt_tokens, speed.completion_tokens)
    return Lengths(characters / CHARACTERS_PER_TOKEN, EXPECTED_SHARE * config.sampling.max_tokens)


def estimate_phases(
    config: RunConfig, prices: PriceTable, shapes: Shapes, work: Work, measured: Calibration | None = None
) -> list[PhaseEstimate]:
    """Expected time and cost of the phases that take any; those whose device or model is not known are left out.

    Reads nothing, and takes microseconds: a run asks again with every shard.
    """
    found = [
        _make_teacher(config, prices, shapes, work, measured),
        _generate(config, prices, shapes, work, measured),
        _train(config, prices, shapes, work, measured),
        _evaluate(config, prices, shapes, work, measured),
    ]
    return [each for each in found if each is not None]


def _make_teacher(
    config: RunConfig, prices: PriceTable, shapes: Shapes, work: Work, measured: Calibration | None
) -> PhaseEstimate | None:
    make = config.pool[config.main_teacher].make
    if make is None or not work.makes_teacher:
        return None
    lessons = work.lengths[config.main_teacher]  # it answers as long as they are
    steps, tokens = count_steps(make.training, make.addition.num_problems, lessons)
    if measured is not None and measured.make_teacher is not None:
        seconds = _in_all(measured.make_teacher, steps)
    elif (shape := shapes.teachers[config.main_teacher]) is not None:
        cores = count_cores(make.training)
        seconds = CPU_START_S + tokens / training_tokens_per_s(shape, make.training, prices.cpu_core, cores)
    else:
        return None
    return _priced(config, prices, "make_teacher", tokens, {"seconds": seconds}, None)


def _generate(
    config: RunConfig, prices: PriceTable, shapes: Shapes, work: Work, measured: Calibration | None
) -> PhaseEstimate | None:
    """All teachers write at the same time: the slowest of them decides."""
    written, seconds, devices = 0.0, 0.0, {}
    for name, prompts in work.prompts.items():
        teacher, lengths = config.pool[name], work.lengths[name]
        problems = work.problems if name == config.main_teacher else 0
        tokens = (prompts * config.sampling.n + problems) * lengths.completion
        speed = None if measured is None else measured.teachers.get(name)
        if speed is not None:
            needed_s: float | None = tokens / speed.tokens_per_s
        else:
            needed_s = _formula_s(config, prices, shapes, name, (prompts + problems) * lengths.prompt, tokens, lengths)
        if needed_s is None:
            return None
        written, seconds = written + tokens, max(seconds, needed_s / teacher.max_replicas)
        devices[name] = speed.device if speed is not None else (Device.GPU if uses_gpu(teacher) else Device.CPU).value
    once_s = _start_s(Device.GPU in devices.values()) if measured is None else measured.generate_once_s
    return _priced(config, prices, "generate", written, {"seconds": once_s + seconds, "devices": devices}, None)


def _formula_s(
    config: RunConfig, prices: PriceTable, shapes: Shapes, name: str, asked: float, written: float, lengths: Lengths
) -> float | None:
    """Seconds that one replica of a teacher needs."""
    teacher = config.pool[name]
    engine, shape = teacher.engine, shapes.teachers[name]
    price = prices.find(teacher.accelerator_type or "") if uses_gpu(teacher) else prices.cpu_core
    if price is None or shape is None:
        return None
    devices = engine.gpus_per_replica if uses_gpu(teacher) else engine.threads
    length = lengths.prompt + lengths.completion / 2
    seconds = asked / prefill_tokens_per_s(shape, price, devices)
    return seconds + written / decode_tokens_per_s(shape, engine, price, devices, length)


def _train(
    config: RunConfig, prices: PriceTable, shapes: Shapes, work: Work, measured: Calibration | None
) -> PhaseEstimate | None:
    rows = sum(work.prompts.values()) * config.sampling.n
    steps, tokens = count_steps(config.training, rows, mean_lengths(work))
    students = 2 if config.student.control else 1
    device = _student_device(config, measured)
    if measured is not None:
        seconds = _in_all(measured.train, students * steps)
    else:
        shape, price = shapes.student, _student_price(config, prices, device)
        if shape is None or price is None:
            return None
        count = config.training.max_workers if device is Device.GPU else count_cores(config.training)
        speed = training_tokens_per_s(shape, config.training, price, count)
        seconds = _start_s(device is Device.GPU) + students * tokens / speed
    return _priced(config, prices, "train", students * tokens, {"seconds": seconds}, device.value)


def _evaluate(
    config: RunConfig, prices: PriceTable, shapes: Shapes, work: Work, measured: Calibration | None
) -> PhaseEstimate | None:
    evaluation = config.evaluation
    if evaluation is None:
        return None
    students = ["student_before", "student_after", *(["student_control"] if config.student.control else [])]
    device = _student_device(config, measured)
    if measured is not None and measured.evaluate is not None:
        tokens = len(students) * work.problems * work.lengths[config.main_teacher].completion
        seconds = _in_all(measured.evaluate, work.problems * len(students) / 2)
    else:
        tokens = len(students) * work.problems * EXPECTED_SHARE * evaluation.max_tokens
        found = _evaluate_by_formula(config, evaluation, prices, shapes, device, tokens / len(students))
        if found is None:
            return None
        seconds = found
    record = {"seconds": seconds, "jobs": students}
    return _priced(config, prices, "evaluate", tokens, record, device.value)


def _evaluate_by_formula(
    config: RunConfig,
    evaluation: EvaluationConfig,
    prices: PriceTable,
    shapes: Shapes,
    device: Device,
    tokens: float,
) -> float | None:
    """Seconds of the students side by side, each on a device of its own."""
    shape, price = shapes.student, _student_price(config, prices, device)
    if shape is None or price is None:
        return None
    engine = EngineConfig(max_num_seqs=evaluation.batch_size, dtype="auto")
    return _start_s(device is Device.GPU) + tokens / decode_tokens_per_s(
        shape, engine, price, 1, evaluation.max_tokens / 2
    )


def overlapped_s(config: RunConfig, work: Work, phases: list[PhaseEstimate]) -> float:
    """Seconds that GENERATE and TRAIN have in common, by which a run is shorter than its phases together.

    The student's first pass follows the teacher; further ones want all rows. 0 for phases in turn.
    """
    seconds = {each.phase: each.seconds for each in phases}
    if not config.is_overlapped or not {"generate", "train"} <= seconds.keys():
        return 0.0
    once = config.training.model_copy(update={"max_steps": None, "epochs": 1})
    rows = sum(work.prompts.values()) * config.sampling.n
    in_once, in_all = (count_steps(training, rows, mean_lengths(work))[0] for training in (once, config.training))
    return min(seconds["generate"], seconds["train"] * min(1.0, in_once / in_all))


def count_steps(training: TrainingConfig, rows: int, lengths: Lengths) -> tuple[int, float]:
    """Steps of a training on so many rows, and the tokens that go through them; sequences count as full."""
    row_tokens = rows * (lengths.prompt + lengths.completion)
    if training.batch_sequences is not None:
        step_tokens = float(training.batch_sequences * training.sequence_length)
    else:
        assert training.batch_tokens is not None
        step_tokens = training.batch_tokens * (lengths.prompt + lengths.completion) / lengths.completion
    steps = training.max_steps or max(1, round(row_tokens / step_tokens)) * training.epochs
    return steps, steps * step_tokens


def mean_lengths(work: Work) -> Lengths:
    """Over the rows of all teachers."""
    rows = sum(work.prompts.values()) or 1
    pairs = [(work.lengths[name], number / rows) for name, number in work.prompts.items()]
    return Lengths(sum(each.prompt * part for each, part in pairs), sum(each.completion * part for each, part in pairs))


def _in_all(speed: PhaseSpeed, units: float) -> float:
    return speed.once_s + units * speed.unit_s


def _start_s(on_gpu: bool) -> float:
    return GPU_START_S if on_gpu else CPU_START_S


def _student_device(config: RunConfig, measured: Calibration | None) -> Device:
    if measured is not None:
        return Device(measured.student_device)
    return Device.GPU if student_uses_gpu(config) else Device.CPU


def _student_price(config: RunConfig, prices: PriceTable, device: Device) -> Price | None:
    return prices.find(student_accelerator(config) or "") if device is Device.GPU else prices.cpu_core


def _priced(
    config: RunConfig,
    prices: PriceTable,
    phase: str,
    tokens: float,
    record: dict[str, Any],
    student_device: str | None,
) -> PhaseEstimate:
    uses = find_usage(config, phase, record, student_device, prices)
    devices = " + ".join(f"{use.count} {use.device or 'GPU of a type not said'}" for use in uses)
    return PhaseEstimate(phase, tokens, record["seconds"], sum_usd(uses), devices)


def assumptions(config: RunConfig, measured: Calibration | None) -> list[str]:
    """What the estimates take for granted, in words."""
    prices = (
        f"prices of {config.cluster.prices or 'configs/prices.yaml, which are examples (cluster.prices names yours)'}"
    )
    if config.is_overlapped:
        prices = f"while phases overlap, teacher and student have devices of their own; {prices}"
    if len(accelerator_types(config)) > 1:
        prices += "; the student's GPU type is not known where teachers name several"
    if measured is not None:
        return [
            f"speeds and starts as measured at {measured.measured_at} (plan --calibrate), with all of max_replicas",
            "every row is accepted; nodes are up; checkpoints and held-back rows are looked at once",
            prices,
        ]
    return [
        f"answers of {EXPECTED_SHARE:.0%} of sampling.max_tokens, {CHARACTERS_PER_TOKEN:g} characters a token; a "
        "home-made teacher's as long as its lessons; every row is accepted",
        f"{BANDWIDTH_USE:.0%} of the memory's bandwidth and {DECODE_USE:.0%} of the arithmetic while decoding, "
        f"{PREFILL_USE:.0%} for prompts, {TRAINING_USE:.0%} while training (plan --calibrate measures instead)",
        f"start in {GPU_START_S:.0f} s on GPUs and {CPU_START_S:.0f} s on CPUs, nodes being up; all of max_replicas",
        prices,
    ]
