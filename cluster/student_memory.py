"""Memory of a student's worker at the fullest moments of a step, by formula: pure functions of shape and recipe.

Counted are the tensors that live at the same time: weights, gradients, AdamW's moments, what a layer keeps for its
backward pass as transformers writes it down operation by operation, the logits of a chunk. A unit test holds that
against the tensors that torch keeps, ``python -m benchmarks memory_fit`` against processes.

Legend: a token's numbers are multiplied by ``width``, 4 bytes in float32 and 2 in bfloat16.
"""

from dataclasses import dataclass

from cluster.model_shape import ModelShape
from configs.schema import Attention, Device, TrainingConfig, TrainingDtype

LOGITS_AT_A_TIME = 2**25  # as `training.loss` makes them
LOGIT_COPIES = 3  # log-probabilities, their gradient and the logits', each in float32
MOMENTS_BYTES = 8.0  # AdamW's two, in float32


@dataclass(frozen=True, slots=True)
class StudentBytes:
    """Of one worker: weights, gradients, moments and what FSDP gathers, and what the fullest moment has on top."""

    state: float
    activations: float


def student_bytes(
    shape: ModelShape, training: TrainingConfig, workers: int, device: Device, trained_part: float = 1.0
) -> StudentBytes:
    """Of one of ``workers``; ``trained_part`` is the part of the weights that are trained, small under LoRA.

    A step is fullest where the loss meets all that the layers keep, or at its end with all gradients. Where a step is
    one micro-batch, the former has no gradients yet: they are given back with each step.
    """
    shards = training.shard_size or workers
    weights, gradients = 4.0 * shape.weights / shards, 4.0 * trained_part * shape.weights / shards
    is_whole = training.dtype is TrainingDtype.FLOAT32 and shards == 1  # the weights are used as they are
    lasting = weights + MOMENTS_BYTES / 4.0 * gradients + (0.0 if is_whole else _gathered_bytes(shape, training))
    head = 4.0 * trained_part * shape.embedding_weights  # a gradient of the output matrix, or of the embeddings
    is_added = _adds_up(training, workers)
    at_loss = kept_bytes(shape, training, device) + _passing_bytes(shape, training, device, head)
    # What comes to a gradient that is there already has to be there as a whole before it is added.
    at_end = head if shape.is_tied or is_added or not is_whole else 0.0
    fullest = max(at_loss + (gradients if is_added else 0.0), gradients + at_end)
    return StudentBytes(lasting + gradients, fullest - gradients)


def _gathered_bytes(shape: ModelShape, training: TrainingConfig) -> float:
    """A layer at work and the next, embeddings and output matrix, in the dtype of the computation.

    A layer that a tensor-parallel group cuts is gathered as far as it is this worker's, all else as a whole.
    """
    matrices = 1 if shape.is_tied else 2
    return (2 * shape.layer_weights / training.tensor_parallel_size + matrices * shape.embedding_weights) * width_of(
        training
    )


def _adds_up(training: TrainingConfig, workers: int) -> bool:
    """Whether a worker's step is several micro-batches; how many are in ``batch_tokens`` only the rows tell."""
    groups = workers // training.tensor_parallel_size
    return training.batch_sequences is None or training.batch_sequences > training.micro_batch_sequences * groups


def kept_bytes(shape: ModelShape, training: TrainingConfig, device: Device) -> float:
    """What a micro-batch keeps from its forward to its backward pass; a layer that is computed again, its input."""
    width, recomputed = width_of(training), recomputed_part(training)
    layer = (1 - recomputed) * layer_bytes(shape, training, device) + recomputed * shape.hidden * width
    # The last norm, its output where a loss is, and the mask of the embeddings' dropout.
    last = shape.hidden * (_norm_bytes(shape, width) + (_mask_width(width, device) if shape.has_dropout else 0.0))
    return tokens_of(training) * (shape.layers * layer + last)


def layer_bytes(shape: ModelShape, training: TrainingConfig, device: Device) -> float:
    """What one layer keeps of one token.

    Attention keeps queries, keys and values as they are multiplied (turned, repeated for each head) and its output,
    which is the next matrix's input. An MLP keeps what `ModelShape.mlp_tensors` says. Both are cut between the workers
    of a tensor-parallel group; hidden states are not.
    """
    width, attention, size = width_of(training), shape.heads * shape.head_size, training.tensor_parallel_size
    norms = 2 * _norm_bytes(shape, width) * shape.hidden
    head_norms = (4.0 + width) * (attention + shape.kv_heads * shape.head_size) if shape.has_head_norms else 0.0
    dropouts = 2 * shape.hidden * _mask_width(width, device) if shape.has_dropout else 0.0
    attended = _attention_bytes(shape, training, device)
    mlp = shape.mlp_tensors * shape.mlp * shape.experts_per_token * width
    return norms + dropouts + attended + (head_norms + mlp) / size


def _norm_bytes(shape: ModelShape, width: float) -> float:
    """For each number: of a kernel input and output; of an RMSNorm in Python input in float32, normal form, output."""
    return 2 * width if shape.has_norm_kernel else 4.0 + 2 * width


def _attention_bytes(shape: ModelShape, training: TrainingConfig, device: Device) -> float:
    """Of one token: queries, keys, values and output, and what there is for each other token of its sequence.

    FlexAttention keeps nothing of those. SDPA's kernels are told who may attend to whom in numbers, made anew for each
    layer. Without a kernel the probabilities of each head are kept: with eager attention, and on CPUs where some of
    them are dropped. SDPA then computes in float32, and keeps mask and remainder beside them.
    """
    width, heads = width_of(training), shape.heads / training.tensor_parallel_size
    numbers, pairs = heads * shape.head_size, float(training.sequence_length)
    match _attention(shape, training, device):
        case Attention.FLEX:
            return 4 * numbers * width
        case Attention.SDPA if shape.has_attention_dropout and device is Device.CPU:
            return numbers * (3 * 4.0 + width) + heads * pairs * 3 * 4.0
        case Attention.SDPA:
            return 4 * numbers * width + pairs * width
        case _:
            # In bfloat16 the softmax is in float32, and its result once more in bfloat16.
            kept = 4.0 if width == 4.0 else 4.0 + width
            dropped = _mask_width(width, device) + width if shape.has_attention_dropout else 0.0
            return 4 * numbers * width + heads * pairs * (kept + dropped)


def _attention(shape: ModelShape, training: TrainingConfig, device: Device) -> Attention:
    """What `training.model` chooses."""
    if training.attention is not Attention.AUTO:
        return training.attention
    return Attention.FLEX if device is Device.GPU and shape.has_flex else Attention.SDPA


def _passing_bytes(shape: ModelShape, training: TrainingConfig, device: Device, head: float) -> float:
    """What comes and goes while all is kept: logits, then gradients on their way through the last layer.

    The loss in chunks adds up the gradient of the output matrix; ``head`` is its size.
    """
    tokens, width = tokens_of(training), width_of(training)
    logits = 4.0 * min(tokens * shape.vocabulary, LOGITS_AT_A_TIME)
    summed = head if tokens * shape.vocabulary > LOGITS_AT_A_TIME else 0.0
    again = layer_bytes(shape, training, device) if recomputed_part(training) else 0.0
    mlp = 2 * shape.mlp * shape.experts_per_token / training.tensor_parallel_size
    layer = tokens * (again + (mlp + shape.hidden) * width)
    return max(LOGIT_COPIES * logits + summed, logits + summed + head, head + layer)


def recomputed_part(training: TrainingConfig) -> float:
    """Part of the layers whose activations are computed again."""
    policy = training.activation_checkpointing
    if policy == "none":
        return 0.0
    return 1.0 if policy == "full" else 1.0 / int(policy.rpartition("-")[2])


def tokens_of(training: TrainingConfig) -> int:
    """Of a micro-batch."""
    return training.micro_batch_sequences * training.sequence_length


def width_of(training: TrainingConfig) -> float:
    """Bytes of a number while it is computed with."""
    return 4.0 if training.dtype is TrainingDtype.FLOAT32 else 2.0


def _mask_width(width: float, device: Device) -> float:
    """Bytes of an entry of a dropout's mask: of numbers on CPUs, of booleans on GPUs."""
    return width if device is Device.CPU else 1.0
