"""What a recipe asks of a cluster, before anything is started: GPUs, memory, time and cost, by `cluster.capacity`.

`check_capacity` refuses what cannot be; `estimate_phases` and `memory_lines` are what `stillhouse plan` shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.capacity import (
    BANDWIDTH_USE,
    DECODE_USE,
    PREFILL_USE,
    TRAINING_USE,
    StudentFit,
    decode_tokens_per_s,
    fit_student,
    fit_teacher,
    prefill_tokens_per_s,
    training_tokens_per_s,
)
from cluster.model_shape import ModelShape, shape_of_init, shape_of_repository
from configs.errors import UserError
from configs.prices import CPU_CORE, Price, PriceTable
from configs.schema import Device, RunConfig, TeacherConfig

EXPECTED_SHARE = 0.5  # of sampling.max_tokens
CHARACTERS_PER_TOKEN = 4.0
GPU_START_S, CPU_START_S = 180.0, 20.0  # from the demand to the first token or step, on nodes that are up


@dataclass(frozen=True, slots=True)
class PhaseEstimate:
    """Expected tokens, seconds and dollars of a phase on ``count`` devices of one type."""

    phase: str
    device: str
    count: int
    tokens: float
    seconds: float
    usd: float


def check_capacity(config: RunConfig, prices: PriceTable, gpu_limit: int | None = None) -> None:
    """Refuse what no cluster of this size, or no GPU of the named type, can do. Starts nothing.

    ``gpu_limit`` is what the cluster's own autoscaler may grow to, None where that is not known.

    Raises:
        UserError: too many GPUs, or a model that does not fit; names the key and the fix.
    """
    limits = [each for each in (config.cluster.max_gpus, gpu_limit) if each is not None]
    for key, count in _gpus_needed(config).items():
        if limits and count > min(limits):
            whose = "cluster.max_gpus" if config.cluster.max_gpus == min(limits) else "its autoscaler's limits"
            raise UserError(
                f"{key} needs {count} GPUs at the same time, and the cluster may grow to {min(limits)} ({whose}); "
                f"lower {key}, or let the cluster grow"
            )
    for name, teacher in config.pool.items():
        _check_teacher(config, name, teacher, prices)
    _check_student(config, prices)


def _gpus_needed(config: RunConfig) -> dict[str, int]:
    """The fewest GPUs of each phase that uses any, by the key that decides."""
    teachers = [each.min_replicas * each.engine.gpus_per_replica for each in config.pool.values() if uses_gpu(each)]
    key = "teachers" if config.teachers else "teacher.min_replicas times its parallel sizes"
    needed = {key: sum(teachers)} if teachers else {}
    if student_uses_gpu(config):
        needed["training.num_workers"] = config.training.min_workers
    return needed


def uses_gpu(teacher: TeacherConfig) -> bool:
    """Whether replicas need GPUs, as far as the recipe tells."""
    if teacher.engine.device is Device.AUTO:
        return teacher.accelerator_type is not None
    return teacher.engine.device is Device.GPU


def student_uses_gpu(config: RunConfig) -> bool:
    """Likewise of the student, which takes over the teacher's nodes."""
    if config.student.device is Device.AUTO:
        return any(uses_gpu(each) for each in config.pool.values())
    return config.student.device is Device.GPU


def teacher_shape(teacher: TeacherConfig) -> ModelShape | None:
    """Of a teacher's model, None where its sizes are not known here."""
    if teacher.make is not None:
        return shape_of_init(teacher.make.model)
    assert teacher.model is not None
    return shape_of_repository(teacher.model, teacher.revision)


def student_shape(config: RunConfig) -> ModelShape | None:
    """Of the student, None where its sizes are not known here."""
    if config.student.init is not None:
        return shape_of_init(config.student.init)
    assert config.student.model is not None
    return shape_of_repository(config.student.model, config.student.revision)


def _check_teacher(config: RunConfig, name: str, teacher: TeacherConfig, prices: PriceTable) -> None:
    price = prices.find(teacher.accelerator_type or "")
    shape = teacher_shape(teacher)
    if price is None or shape is None or not uses_gpu(teacher):
        return
    length = _longest(config, teacher)
    fit = fit_teacher(shape, teacher.engine, length, price.memory_gib)
    if not fit.fits:
        key = f"teachers.{name}" if config.teachers else "teacher"
        raise UserError(
            f"{key}.model does not fit {teacher.engine.gpus_per_replica} {teacher.accelerator_type} of "
            f"{price.memory_gib:g} GiB: each would hold {fit.weights_gib:.1f} GiB of weights, with room for "
            f"{fit.cache_gib:.1f} GiB of cache, less than one sequence of {length:,} tokens; raise "
            f"{key}.engine.tensor_parallel_size, or name a larger {key}.accelerator_type"
        )


def _check_student(config: RunConfig, prices: PriceTable) -> None:
    shape = student_shape(config)
    if shape is None or not student_uses_gpu(config):
        return
    named = {name for each in config.pool.values() if (name := each.accelerator_type) in prices.accelerators and name}
    types = {name: prices.accelerators[name] for name in named} or prices.accelerators
    workers, fits = config.training.max_workers, _fit_types(config, shape, types)
    if not any(fit.fits for fit in fits.values()):
        name, fit = max(fits.items(), key=lambda each: each[1].available_gib)
        raise UserError(
            f"the student needs {fit.needed_gib:.1f} GiB in each of {workers} workers ({fit.state_gib:.1f} of weights "
            f"and optimiser, {fit.activations_gib:.1f} of activations), and {name} has {fit.available_gib:.1f}; raise "
            "training.num_workers, set training.activation_checkpointing=full, or lower training.micro_batch_sequences"
        )


def _fit_types(config: RunConfig, shape: ModelShape, types: Mapping[str, Price]) -> dict[str, StudentFit]:
    part = 1.0 if config.student.lora is None else 0.01  # adapters are about a hundredth of the weights
    workers = config.training.max_workers
    return {kind: fit_student(shape, config.training, workers, each.memory_gib, part) for kind, each in types.items()}


def _longest(config: RunConfig, teacher: TeacherConfig) -> int:
    return teacher.engine.max_model_len or 2 * config.sampling.max_tokens


def memory_lines(config: RunConfig, prices: PriceTable) -> list[str]:
    """Which accelerator types the models fit, each model in a line; for a run on CPUs there is none."""
    lines = []
    for name, teacher in config.pool.items():
        if not uses_gpu(teacher):
            continue
        shape, length = teacher_shape(teacher), _longest(config, teacher)
        if shape is None:
            lines.append(f"{name}: not known, as its config.json is not on this machine")
            continue
        fits = {
            kind: fit_teacher(shape, teacher.engine, length, each.memory_gib)
            for kind, each in prices.accelerators.items()
        }
        found = ", ".join(f"{kind} ({fit.sequences:,} sequences)" for kind, fit in fits.items() if fit.fits)
        weights = next(iter(fits.values())).weights_gib
        lines.append(f"{name}: {weights:.1f} GiB of weights a GPU; of {length:,} tokens fit: {found or 'none'}")
    if student_uses_gpu(config):
        lines.append(_student_memory(config, prices))
    return lines


def _student_memory(config: RunConfig, prices: PriceTable) -> str:
    shape, workers = student_shape(config), config.training.max_workers
    if shape is None:
        return "student: not known, as its config.json is not on this machine"
    fits = _fit_types(config, shape, prices.accelerators)
    fit = next(iter(fits.values()))
    found = ", ".join(kind for kind, each in fits.items() if each.fits)
    return (
        f"student: {fit.state_gib:.1f} GiB of state and {fit.activations_gib:.1f} GiB of activations in each of "
        f"{workers} workers; fits {found or 'none'}"
    )


def estimate_phases(
    config: RunConfig, prices: PriceTable, prompts: dict[str, int], mean_characters: float
) -> list[PhaseEstimate]:
    """Expected cost of generating and training; phases whose device or model is not known are left out.

    ``prompts`` are those of each teacher by name, ``mean_characters`` the mean length of one.
    """
    is_made = any(each.make is not None for each in config.pool.values())
    prompt_tokens = mean_characters / (1.0 if is_made else CHARACTERS_PER_TOKEN)
    completion_tokens = EXPECTED_SHARE * config.sampling.max_tokens
    found = [
        _generate(config, name, prices, prompts.get(name, 0), prompt_tokens, completion_tokens) for name in config.pool
    ]
    rows = sum(prompts.values()) * config.sampling.n
    found.append(_train(config, prices, rows * (prompt_tokens + completion_tokens)))
    return [each for each in found if each is not None]


def _device(accelerator_type: str | None, is_gpu: bool, prices: PriceTable) -> tuple[str, Price] | None:
    if not is_gpu:
        return CPU_CORE, prices.cpu_core
    price = prices.find(accelerator_type or "")
    return None if accelerator_type is None or price is None else (accelerator_type, price)


def _generate(
    config: RunConfig, name: str, prices: PriceTable, prompts: int, prompt_tokens: float, completion_tokens: float
) -> PhaseEstimate | None:
    teacher = config.pool[name]
    engine, is_gpu, shape = teacher.engine, uses_gpu(teacher), teacher_shape(teacher)
    device = _device(teacher.accelerator_type, is_gpu, prices)
    if device is None or shape is None:
        return None
    each = engine.gpus_per_replica if is_gpu else engine.threads
    asked, written = prompts * prompt_tokens, prompts * config.sampling.n * completion_tokens
    length = prompt_tokens + completion_tokens / 2
    work_s = asked / prefill_tokens_per_s(shape, device[1], each)
    work_s += written / decode_tokens_per_s(shape, engine, device[1], each, length)
    seconds = (GPU_START_S if is_gpu else CPU_START_S) + work_s / teacher.max_replicas
    return _priced(f"generate, {name}", device, each * teacher.max_replicas, written, seconds)


def _train(config: RunConfig, prices: PriceTable, row_tokens: float) -> PhaseEstimate | None:
    training, shape, is_gpu = config.training, student_shape(config), student_uses_gpu(config)
    named = next((each.accelerator_type for each in config.pool.values() if each.accelerator_type), None)
    device = _device(named, is_gpu, prices)
    if device is None or shape is None:
        return None
    tokens = row_tokens * training.epochs
    if training.max_steps is not None and training.batch_sequences is not None:
        tokens = float(training.max_steps * training.batch_sequences * training.sequence_length)
    count = training.max_workers * (1 if is_gpu else training.threads_per_worker)
    seconds = tokens / training_tokens_per_s(shape, training, device[1], count)
    students = 2 if config.student.control else 1
    seconds = (GPU_START_S if is_gpu else CPU_START_S) + students * seconds
    return _priced("train", device, count, students * tokens, seconds)


def _priced(phase: str, device: tuple[str, Price], count: int, tokens: float, seconds: float) -> PhaseEstimate:
    name, price = device
    return PhaseEstimate(phase, name, count, tokens, seconds, seconds * count * price.usd_per_second)


def assumptions(prices_file: str | None) -> list[str]:
    """What the estimates take for granted, in words."""
    return [
        f"answers of {EXPECTED_SHARE:.0%} of sampling.max_tokens, {CHARACTERS_PER_TOKEN:g} characters a token",
        f"{BANDWIDTH_USE:.0%} of the memory's bandwidth and {DECODE_USE:.0%} of the arithmetic while decoding, "
        f"{PREFILL_USE:.0%} for prompts, {TRAINING_USE:.0%} while training",
        f"start in {GPU_START_S:.0f} s on GPUs and {CPU_START_S:.0f} s on CPUs, nodes being up; all of max_replicas",
        f"prices of {prices_file or 'configs/prices.yaml, which are examples (cluster.prices names yours)'}",
    ]
