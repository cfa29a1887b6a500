"""A directory of packed tensors, one file a step: what the bare loop and the ladder read.

``step-XXXXX.pt`` is a list of micro-batches, each with ``input_ids``, ``position_ids`` and ``labels`` of B packed
sequences by T tokens; a label is the token that its position should predict, or -1. ``settings.json`` is the workload.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.workload import NO_LOSS, Workload, build_job, write_settings


def write_tensors(workload: Workload, rows: Path, model: str, directory: Path) -> None:
    """Write the steps of the job's own packing and order, so that both see the same tensors."""
    from training.batches import iterate_steps
    from training.corpus import load_corpus
    from training.parallel import World
    from training.plan import plan_epoch

    directory.mkdir(parents=True)
    job = build_job(workload, rows, model, directory / "unused")
    world = World(0, 1, torch.device("cpu"))
    corpus = load_corpus(job.files, job.training, world)
    plan = plan_epoch(corpus, job.training, 0)
    if plan.num_steps < workload.num_steps:
        raise ValueError(f"{workload.num_rows} rows make {plan.num_steps} steps and {workload.num_steps} are asked for")
    steps = iterate_steps(corpus, plan, job.training, world, pad_id=0)
    for number, micro_batches in enumerate(islice(steps, workload.num_steps)):
        torch.save([_labelled(each) for each in micro_batches], directory / f"step-{number:05d}.pt")
    steps.close()
    write_settings(workload, directory)


def _labelled(micro_batch: Any) -> dict[str, torch.Tensor]:
    labels = torch.full(micro_batch.input_ids_BT.shape, NO_LOSS)
    labels.flatten()[micro_batch.loss_index_N] = micro_batch.targets_N
    return {"input_ids": micro_batch.input_ids_BT, "position_ids": micro_batch.position_ids_BT, "labels": labels}
