"""`plan`'s memory of a student against that of a process: ``python -m benchmarks memory_fit [SHAPE ...]``.

Each shape takes two steps on one core, through the training loop, in a process of its own. Measured is the peak of
resident memory beyond what interpreter and libraries had after a few tokens of a tiny model. Blocks of a megabyte go
back to the system when they are freed, as with two workers and more; left to itself, glibc keeps some of them.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import measure_in_child
from cluster.model_shape import read_shape
from cluster.student_memory import student_bytes
from configs.schema import Device, TrainingConfig

BOUND = 0.1  # of the measured memory
STEPS = 2  # the first makes AdamW's moments, so the second is the fuller one
DEADLINE_S = 300.0
PROMPT_TOKENS = 4  # of each document, two of which fill a sequence: nearly every token bears a loss
RETURNS_FREED = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}


@dataclass(frozen=True, slots=True)
class Fit:
    """A student and its batch; ``micro_batches`` make a step."""

    model_type: str
    vocabulary: int
    sequences: int
    length: int
    micro_batches: int
    arguments: dict[str, Any]

    @property
    def training(self) -> TrainingConfig:
        """In float32, as CPUs without AMX are several times slower in bfloat16."""
        return TrainingConfig(
            sequence_length=self.length,
            micro_batch_sequences=self.sequences,
            batch_sequences=self.sequences * self.micro_batches,
            max_steps=STEPS,
            dtype="float32",
            evaluation_fraction=0.0,
            check_rows=0,
            log_every=1,
        )

    def estimate_mib(self) -> float:
        """What `plan` expects of one worker."""
        shape = read_shape({**self.arguments, "model_type": self.model_type, "vocab_size": self.vocabulary})
        assert shape is not None
        needed = student_bytes(shape, self.training, 1, Device.CPU)
        return (needed.state + needed.activations) / 2**20


SHAPES = {
    # Weights, gradients and moments are most of it.
    "llama": Fit(
        model_type="llama",
        vocabulary=8192,
        sequences=4,
        length=128,
        micro_batches=2,
        arguments={
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
        },
    ),
    # What the layers keep is most of it.
    "qwen3": Fit(
        model_type="qwen3",
        vocabulary=4096,
        sequences=4,
        length=512,
        micro_batches=1,
        arguments={
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
    ),
    # Dropout keeps attention's probabilities, token by token and head by head.
    "gpt2": Fit(
        model_type="gpt2",
        vocabulary=4096,
        sequences=3,
        length=512,
        micro_batches=1,
        arguments={"n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 512},
    ),
}
TINY = {
    "llama": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1},
    "qwen3": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1},
    "gpt2": {"n_embd": 64, "n_layer": 1},
}


class Measured(Exception):
    """Ends a training after its last step, before it writes anything."""


def main(arguments: list[str]) -> int:
    """Print a line a shape; returns 1 when one is further off than the bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory_fit", description=__doc__)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; all when none is named")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps({"measured_mib": measure_mib(options.child)}))
        return 0
    worst = 0.0
    print(f"{'shape':>6} {'estimate':>13} {'measured':>13} {'ratio':>6}")
    for name in options.shapes or SHAPES:
        estimate = SHAPES[name].estimate_mib()
        measured = measure_in_child("memory_fit", name, DEADLINE_S, RETURNS_FREED)["measured_mib"]
        worst = max(worst, abs(estimate / measured - 1))
        print(f"{name:>6} {estimate:>9,.0f} MiB {measured:>9,.0f} MiB {estimate / measured:>6.3f}", flush=True)
    print(f"the furthest off is {worst:.1%}; bound {BOUND:.0%}")
    return int(worst > BOUND)


def measure_mib(name: str) -> float:
    """Peak resident memory of two steps, in this process, beyond what a tiny model's left."""
    import psutil

    fit = SHAPES[name]
    with tempfile.TemporaryDirectory(prefix="fit-") as directory:
        tiny = replace(fit, sequences=1, length=16, arguments=fit.arguments | TINY[name])
        _train(tiny, Path(directory) / "tiny")
        before = psutil.Process().memory_info().rss / 2**20
        return _train(fit, Path(directory) / "student") - before


def _train(fit: Fit, directory: Path) -> float:
    """Take the steps; returns the peak of this process so far (MiB)."""
    import torch

    from training.job import JobDevice, StepMetrics, TrainJob
    from training.loop import train
    from training.parallel import World

    rows, tokenizer = _write_data(fit, directory)
    job = TrainJob(
        name="fit",
        files=(rows,),
        tokenizer=tokenizer,
        output_dir=str(directory / "out"),
        init={"model_type": fit.model_type, "arguments": fit.arguments},
        training=fit.training,
        device=JobDevice.CPU,
    )
    peak_mib = 0.0

    def follow(metrics: StepMetrics) -> None:
        nonlocal peak_mib
        peak_mib = metrics.peak_memory_mib
        if metrics.step == STEPS:
            raise Measured

    try:
        train(job, follow, World(0, 1, torch.device("cpu")))
    except Measured:
        return peak_mib
    raise AssertionError("a training logs its last step")


def _write_data(fit: Fit, directory: Path) -> tuple[Any, str]:
    """Rows of half a sequence, as many as all steps take, and a tokenizer of as many characters as the vocabulary."""
    import numpy as np

    from benchmarks.training.shapes import FIRST_CHARACTER, SPECIAL
    from benchmarks.training.workload import write_rows
    from training.job import DataFile
    from training.tokenizer import build_character_tokenizer

    directory.mkdir()
    characters = map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + fit.vocabulary - SPECIAL))
    build_character_tokenizer("".join(characters)).save_pretrained(directory)
    num_rows = 2 * fit.sequences * fit.micro_batches * STEPS
    drawn = np.random.default_rng(0).integers(SPECIAL, fit.vocabulary, size=(num_rows, fit.length // 2)).tolist()
    write_rows([(tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS:]) for tokens in drawn], directory / "rows.parquet")
    return DataFile(str(directory / "rows.parquet"), num_rows), str(directory)
