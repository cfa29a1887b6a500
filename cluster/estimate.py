"""What a recipe asks of a cluster, before anything is started: GPUs and memory, by `cluster.capacity`.

`check_capacity` refuses what cannot be; `memory_lines` are what `stillhouse plan` shows. Time and cost are
`cluster.forecast`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.capacity import StudentFit, fit_student, fit_teacher
from cluster.model_shape import ModelShape, shape_of_init, shape_of_repository
from cluster.usage import accelerator_types
from configs.errors import UserError
from configs.prices import Price, PriceTable
from configs.schema import Device, RunConfig, TeacherConfig
from configs.tensor_parallel import check_heads


@dataclass(frozen=True, slots=True)
class Shapes:
    """The models of a run; None where a model's sizes are not known on this machine."""

    teachers: dict[str, ModelShape | None]
    student: ModelShape | None


def read_shapes(config: RunConfig) -> Shapes:
    """Of every teacher and of the student, from each ``config.json``."""
    return Shapes({name: teacher_shape(each) for name, each in config.pool.items()}, student_shape(config))


def check_capacity(config: RunConfig, prices: PriceTable) -> None:
    """Refuse what no cluster of ``cluster.max_gpus``, or no GPU of the named type, can do. Starts and asks nothing.

    What the cluster itself may come to is `cluster.limits`'s, once it is joined.

    Raises:
        UserError: too many GPUs, or a model that does not fit; names the key and the fix.
    """
    most = config.cluster.max_gpus
    for key, count in _gpus_needed(config).items():
        if most is not None and count > most:
            raise UserError(
                f"{key} needs {count} GPUs at the same time, and the cluster may grow to {most} (cluster.max_gpus); "
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
    if config.is_overlapped and needed:
        needed = {" and ".join(needed) + " together (cluster.phases=overlapped)": sum(needed.values())}
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
        key = config.teacher_key(name)
        raise UserError(
            f"{key}.model does not fit {teacher.engine.gpus_per_replica} {teacher.accelerator_type} of "
            f"{price.memory_gib:g} GiB: each would hold {fit.weights_gib:.1f} GiB of weights, with room for "
            f"{fit.cache_gib:.1f} GiB of cache, less than one sequence of {length:,} tokens; raise "
            f"{key}.engine.tensor_parallel_size, or name a larger {key}.accelerator_type"
        )


def _check_student(config: RunConfig, prices: PriceTable) -> None:
    shape = student_shape(config)
    if shape is None:
        return
    check_heads(shape.heads, shape.kv_heads, config.training.tensor_parallel_size)
    if not student_uses_gpu(config):
        return
    named = accelerator_types(config) & prices.accelerators.keys()
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
