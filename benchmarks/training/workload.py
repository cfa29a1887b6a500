"""Rows to learn from, the same in every arm, and the job and the packed tensors made of them.

Lengths are long-tailed: lognormal, the 99th percentile eight times the median, as answers of reasoning teachers are.
"""

import json
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.training.shapes import END, SHAPES, SPECIAL

P99_OVER_P50 = 8.0
PROMPT_PART = 0.25  # of a row's tokens, without loss
NOISE = 0.2  # of the tokens are drawn anew; the others follow from the one before, so there is something to learn
NO_LOSS = -1
SHORTEST_ROW = 4  # so that a completion has more than its end

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Workload:
    """What one comparison trains; token counts of a step are over all of its packed sequences."""

    shape: str
    sequence_length: int
    batch_sequences: int
    num_rows: int
    median_row: int
    num_steps: int
    seed: int = 0
    learning_rate: float = 1e-3
    dtype: str = "float32"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95


def tail_lengths(num_rows: int, median: int, longest: int) -> Int64s:
    """Return lognormal lengths by their quantiles, ascending: as heavy a tail as asked with any number of rows."""
    normal, spread = NormalDist(), log(P99_OVER_P50) / NormalDist().inv_cdf(0.99)
    quantiles = ((i + 0.5) / num_rows for i in range(num_rows))
    lengths = [median * exp(spread * normal.inv_cdf(q)) for q in quantiles]
    return np.clip(np.round(lengths), SHORTEST_ROW, longest).astype(np.int64)


def build_rows(workload: Workload) -> list[tuple[list[int], list[int]]]:
    """Return ``(prompt, completion)`` token ids of each row, in random order."""
    rng = np.random.default_rng(workload.seed)
    vocabulary = SHAPES[workload.shape].vocabulary
    follower = np.random.default_rng(0).permutation(np.arange(SPECIAL, vocabulary))
    rows = []
    for length in rng.permutation(tail_lengths(workload.num_rows, workload.median_row, workload.sequence_length)):
        drawn = rng.integers(SPECIAL, vocabulary, size=length)
        is_drawn = rng.random(length) < NOISE
        tokens = [int(drawn[0])]
        for place in range(1, int(length)):
            tokens.append(int(drawn[place]) if is_drawn[place] else int(follower[tokens[-1] - SPECIAL]))
        tokens[-1] = END  # nothing else would teach to stop
        cut = max(1, round(PROMPT_PART * int(length)))
        rows.append((tokens[:cut], tokens[cut:]))
    return rows


def write_rows(rows: list[tuple[list[int], list[int]]], path: Path) -> None:
    """Write the rows as the accepted part of a completions table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from configs.table import TOKEN_IDS

    prompts, completions = zip(*rows, strict=True)
    columns = {
        "prompt_id": pa.array([f"{i:032x}" for i in range(len(rows))]),
        "status": pa.array(["accepted"] * len(rows)),
        "prompt_token_ids": pa.array(prompts, TOKEN_IDS),
        "completion_token_ids": pa.array(completions, TOKEN_IDS),
    }
    pq.write_table(pa.table(columns), path)


def build_job(workload: Workload, rows: Path, model: str, output_dir: Path, **training: Any) -> Any:
    """Return the `TrainJob` of the workload; ``training`` overrides keys of its training section."""
    from configs.schema import OptimizerConfig, TrainingConfig
    from training.job import DataFile, TrainJob

    settings: dict[str, Any] = {
        "sequence_length": workload.sequence_length,
        "batch_sequences": workload.batch_sequences,
        "max_steps": workload.num_steps,
        "dtype": workload.dtype,
        "seed": workload.seed,
        "evaluation_fraction": 0.0,
        "checkpoint_every": 10**6,
        "log_every": 1,
        "optimizer": OptimizerConfig(
            learning_rate=workload.learning_rate,
            schedule="constant",
            warmup_ratio=0.0,
            weight_decay=workload.weight_decay,
            beta1=workload.beta1,
            beta2=workload.beta2,
            max_grad_norm=workload.max_grad_norm,
        ),
    }
    return TrainJob(
        name="benchmark",
        files=(DataFile(str(rows), workload.num_rows),),
        tokenizer=model,
        model=model,
        output_dir=str(output_dir),
        training=TrainingConfig(**settings | training),
    )


def write_settings(workload: Workload, directory: Path) -> None:
    """Write what a loop without the project's code has to know beside the tensors."""
    (directory / "settings.json").write_text(json.dumps(asdict(workload)))
