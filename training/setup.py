"""Everything a training loop needs before its first step: rows, student, optimiser, number of steps."""

import os
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from configs.errors import UserError
from configs.terms.binding import check_binding
from training.corpus import load_corpus
from training.job import Commits, TrainJob, Transfer
from training.liger import check_loss_kernel
from training.lora import add_adapters, is_quantized, quantize_base
from training.loss import StudentWithLoss
from training.model import find_decoder_layers, load_model, load_tokenizer, set_computation
from training.parallel import World, shard_model
from training.row_check import check_rows
from training.rows import GrowingRows, SealedRows
from training.schedule import build_optimizer
from training.tensor_parallel import plan_layers
from training.tokenise import tokenise_files, write_reference_rows
from training.weights import fill_weights, without_weights


@dataclass(frozen=True, slots=True)
class Setup:
    """A job made ready on one rank."""

    job: TrainJob
    world: World
    tokenizer: PreTrainedTokenizerBase
    rows: SealedRows | GrowingRows
    student: StudentWithLoss
    optimizer: torch.optim.Optimizer
    num_steps: int

    @property
    def pad_id(self) -> int:
        """Token that fills sequences up; padding is a document of its own without loss, so any token would do."""
        return self.tokenizer.pad_token_id or 0


def prepare(job: TrainJob, world: World) -> Setup:
    """Return the job's setup on this rank; every rank calls it. UserError for what the user can mend."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would fight with those of the workers
    disable_progress_bar()  # bars for reading and writing weights have no place in a worker's log
    torch.set_num_threads(job.training.threads_per_worker)
    with world.agreement():
        check_loss_kernel(job)
        if job.binding is not None:
            check_binding(job.binding)
        tokenizer = load_tokenizer(job.tokenizer, job.tokenizer_revision, job.trust_remote_code)
    rows = _open_growing(job, job.commits, tokenizer, world) if job.commits else _open_sealed(job, tokenizer, world)
    student = _build_student(job, tokenizer, world)
    student.train()
    return Setup(
        job=job,
        world=world,
        tokenizer=tokenizer,
        rows=rows,
        student=student,
        optimizer=build_optimizer(student, job.training.optimizer),
        num_steps=_count_steps(rows, job),
    )


def _build_student(job: TrainJob, tokenizer: PreTrainedTokenizerBase, world: World) -> StudentWithLoss:
    """Return the student, spread over the world. Rank 0 loads it, the others get their parts of its weights alone.

    Each rank loads it for itself where its weights are packed in 4 bits, which FSDP2 cannot spread, and where its code
    is its repository's own, which only the rank that loads it can import.
    """
    is_loaded_by_all = world.size == 1 or is_quantized(job) or job.trust_remote_code
    model = None
    with world.agreement():
        if world.rank == 0 or is_loaded_by_all:
            model = load_model(job, tokenizer)
    if not is_loaded_by_all:
        empty = world.broadcast(None if model is None else without_weights(model))
        model = model or empty
    assert model is not None
    with world.agreement():
        set_computation(model, job)
        plans = plan_layers(model, find_decoder_layers(model), world.tensor_parallel_size)
        quantize_base(model, job, world.device)
        add_adapters(model, job)
    whole = StudentWithLoss(model, job.training.objective, job.training.loss_kernel)
    student = whole if is_loaded_by_all else without_weights(whole)
    shard_model(student, find_decoder_layers(student.model), job.training, world, plans)
    if student is not whole:
        fill_weights(student, whole, world)
    return student


def _open_sealed(job: TrainJob, tokenizer: PreTrainedTokenizerBase, world: World) -> SealedRows:
    with world.agreement():
        if world.rank == 0:
            check_rows(job, tokenizer)
    files = tokenise_files(job, tokenizer, world) if job.transfer is Transfer.TEXT else job.files
    if job.training.objective.ground_truth_share:
        files += write_reference_rows(job, tokenizer, world)
    return SealedRows(load_corpus(files, job.training, world, job.excluded), job)


def _open_growing(job: TrainJob, commits: Commits, tokenizer: PreTrainedTokenizerBase, world: World) -> GrowingRows:
    if job.training.max_steps is None:
        raise UserError(
            "a student that learns while the teacher writes needs training.max_steps: its learning rate follows the "
            "number of steps, which the rows tell only at the end"
        )
    if job.transfer is Transfer.TEXT or job.training.objective.ground_truth_share:
        raise UserError(
            "a student learns while the teacher writes from the teacher's own tokens alone (student.transfer=token_ids "
            "and training.objective.ground_truth_share=0); train on sealed files for anything else"
        )
    return GrowingRows(commits, job, world, lambda files: check_rows(replace(job, files=files), tokenizer))


def _count_steps(rows: SealedRows | GrowingRows, job: TrainJob) -> int:
    if job.training.max_steps is not None:
        return job.training.max_steps
    assert isinstance(rows, SealedRows)
    return rows.count_steps()
