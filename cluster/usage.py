"""Which devices a phase holds, and what they cost for its seconds: of a run that was, and of one that is planned."""

from dataclasses import dataclass
from typing import Any

from configs.prices import CPU_CORE, PriceTable
from configs.schema import Device, RunConfig, TrainingConfig


@dataclass(frozen=True, slots=True)
class Usage:
    """What one phase held of one pool: ``count`` devices for ``seconds``.

    Example: ``Usage("generate", "teacher", "H100", 8, 3600.0, 28800.0, 24.0)``
    """

    phase: str
    pool: str
    device: str | None
    """Accelerator type, or ``cpu_core``; None for a GPU of unknown type."""
    count: int
    seconds: float
    device_seconds: float
    usd: float | None


def find_usage(
    config: RunConfig, phase: str, record: dict[str, Any], student_device: str | None, prices: PriceTable
) -> list[Usage]:
    """Who held what in a phase, for the seconds that it recorded; the program itself counts as one core."""
    uses, seconds = [], record["seconds"]

    def use(pool: str, device: str | None, count: int, seconds: float = seconds) -> None:
        price = prices.root.get(device) if device else None
        used = round(count * seconds, 3)
        uses.append(Usage(phase, pool, device, count, seconds, used, used * price.usd_per_second if price else None))

    make = config.pool[config.main_teacher].make
    match phase:
        case "make_teacher" if make is not None:
            use("teacher", CPU_CORE, count_cores(make.training))
        case "generate":
            for name, device in record.get("devices", {}).items():
                teacher = config.pool[name]
                if device == Device.GPU:
                    kind, size = teacher.accelerator_type, teacher.engine.gpus_per_replica
                else:
                    kind, size = CPU_CORE, teacher.engine.threads
                use(f"teacher.{name}", kind, size * teacher.max_replicas)
        case "train" | "evaluate":
            on_gpu, training = student_device == Device.GPU, config.training
            kind = student_accelerator(config) if on_gpu else CPU_CORE
            count = training.max_workers if on_gpu else count_cores(training)
            if phase == "evaluate":
                count = len(record["jobs"])  # a task for each student, of one device
            grown_s = record.get("grown_s", seconds)
            if grown_s < seconds:  # beside the teacher, whose devices are counted with it
                use("student", kind, count * training.min_workers // training.max_workers, round(seconds - grown_s, 3))
            if grown_s:
                use("student", kind, count, grown_s)
        case _:
            use("program", CPU_CORE, 1)
    return uses


def sum_usd(uses: list[Usage]) -> float | None:
    """Dollars of them together; None where one has no price."""
    dollars = [use.usd for use in uses]
    return None if None in dollars else sum(each for each in dollars if each is not None)


def accelerator_types(config: RunConfig) -> set[str]:
    """The types of GPUs that teachers name, which are the student's as well: it takes over what they give back."""
    return {name for teacher in config.pool.values() if (name := teacher.accelerator_type) is not None}


def student_accelerator(config: RunConfig) -> str | None:
    """The type of the student's GPUs; None where no teacher names one, or several do."""
    types = accelerator_types(config)
    return types.pop() if len(types) == 1 else None


def count_cores(training: TrainingConfig) -> int:
    """CPU cores of a training on CPUs."""
    return training.max_workers * training.threads_per_worker
