"""Whether models fit into memory, and what phases take, by formula: pure functions of shapes, recipe and price table.

`docs/performance.md` explains the formulas; the constants below are their assumptions, and `plan` prints them.
"""

from dataclasses import dataclass

from cluster.model_shape import BYTES_BY_DTYPE, BYTES_BY_QUANTIZATION, ModelShape
from cluster.student_memory import recomputed_part, student_bytes
from configs.prices import Price
from configs.schema import Device, EngineConfig, TrainingConfig

GIB = 2**30
ENGINE_OVERHEAD_GIB = 2.0  # CUDA context, graphs and the activations of one engine step
TRAINER_OVERHEAD_GIB = 2.0  # CUDA context, NCCL's buffers, fragments
USABLE = 0.95  # of a GPU's memory while training
BANDWIDTH_USE, DECODE_USE, PREFILL_USE, TRAINING_USE = 0.6, 0.4, 0.5, 0.4  # of the peaks of the data sheet
STEP_OVERHEAD_S = 0.004  # of an engine's step: scheduling, sampling, detokenising
RECOMPUTED = 1.0 / 3.0  # full recomputation is one more forward pass, of three passes' worth


@dataclass(frozen=True, slots=True)
class TeacherFit:
    """Memory of one GPU of a teacher (GiB); ``sequences`` of full length have room in the cache at the same time."""

    weights_gib: float
    cache_gib: float
    sequences: int

    @property
    def fits(self) -> bool:
        """vLLM starts when one sequence of full length has room."""
        return self.sequences >= 1


@dataclass(frozen=True, slots=True)
class StudentFit:
    """Memory of one worker of a student (GiB)."""

    state_gib: float
    activations_gib: float
    available_gib: float

    @property
    def needed_gib(self) -> float:
        """Everything together."""
        return self.state_gib + self.activations_gib

    @property
    def fits(self) -> bool:
        """Whether it is less than there is."""
        return self.needed_gib <= self.available_gib


def fit_teacher(shape: ModelShape, engine: EngineConfig, length: int, memory_gib: float) -> TeacherFit:
    """Memory of each of a replica's GPUs, at sequences of ``length`` tokens (prompt and completion)."""
    weights_gib = teacher_weight_bytes(shape, engine) / GIB
    cache_gib = memory_gib * engine.gpu_memory_utilization - weights_gib - ENGINE_OVERHEAD_GIB
    per_sequence_gib = sequence_cache_bytes(shape, engine, length) / GIB
    return TeacherFit(weights_gib, max(0.0, cache_gib), max(0, int(cache_gib / per_sequence_gib)))


def teacher_weight_bytes(shape: ModelShape, engine: EngineConfig) -> float:
    """Weights on each of a replica's GPUs (bytes)."""
    return shape.weights * weight_bytes(shape, engine) / engine.gpus_per_replica


def sequence_cache_bytes(shape: ModelShape, engine: EngineConfig, length: float) -> float:
    """Keys and values of one sequence on each of a replica's GPUs (bytes), in the engine's dtype or the one named."""
    asked = str(engine.extra.get("kv_cache_dtype", "auto"))
    each = 1.0 if "fp8" in asked else BYTES_BY_DTYPE.get(engine.dtype if asked == "auto" else asked, 2.0)
    # Heads that are fewer than GPUs are kept by several of them.
    shared = engine.pipeline_parallel_size * min(engine.tensor_parallel_size, shape.kv_heads)
    return length * shape.cache_bytes_per_token(each) / shared


def weight_bytes(shape: ModelShape, engine: EngineConfig) -> float:
    """Bytes of one weight as the engine holds it."""
    if engine.quantization is not None:
        return BYTES_BY_QUANTIZATION.get(engine.quantization, 1.0)
    return shape.stored_bytes or BYTES_BY_DTYPE.get(engine.dtype, 2.0)


def fit_student(
    shape: ModelShape, training: TrainingConfig, workers: int, memory_gib: float, trained_part: float = 1.0
) -> StudentFit:
    """Memory of one of ``workers``, on a GPU; ``trained_part`` is the part of the weights that are trained."""
    needed = student_bytes(shape, training, workers, Device.GPU, trained_part)
    return StudentFit(needed.state / GIB, needed.activations / GIB, memory_gib * USABLE - TRAINER_OVERHEAD_GIB)


def decode_tokens_per_s(shape: ModelShape, engine: EngineConfig, price: Price, devices: int, length: float) -> float:
    """Tokens/s of one replica while it decodes sequences whose mean length is ``length`` (Roofline, docs).

    A step reads every weight once and every sequence's cache, and multiplies the active weights for each sequence.
    """
    sequences = engine.max_num_seqs
    read = engine.gpus_per_replica * (
        teacher_weight_bytes(shape, engine) + sequences * sequence_cache_bytes(shape, engine, length)
    )
    bandwidth = price.bandwidth_gb_per_s * 1e9 * devices * BANDWIDTH_USE
    flops = 2.0 * shape.active_weights * sequences
    step_s = max(read / bandwidth, flops / (price.bf16_flops * devices * DECODE_USE)) + STEP_OVERHEAD_S
    return sequences / step_s


def prefill_tokens_per_s(shape: ModelShape, price: Price, devices: int) -> float:
    """Prompt tokens/s of one replica: 2 operations a weight and token."""
    return price.bf16_flops * devices * PREFILL_USE / (2.0 * shape.active_weights)


def training_tokens_per_s(shape: ModelShape, training: TrainingConfig, price: Price, devices: int) -> float:
    """Tokens/s of all workers: 6 operations a weight and token, and what is recomputed."""
    operations = 6.0 * shape.active_weights * (1 + RECOMPUTED * recomputed_part(training))
    return price.bf16_flops * devices * TRAINING_USE / operations
