"""Tiny rows, tokenizers and jobs for the student's tests: everything trains in about a second."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.schema import OptimizerConfig, TrainingConfig
from configs.table import TOKEN_IDS
from training.corpus import sha256_of
from training.job import DataFile, TrainJob
from training.tokenizer import build_character_tokenizer

CHARACTERS = "0123456789+=;"
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}

_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("status", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("prompt_token_ids", TOKEN_IDS),
        ("completion_token_ids", TOKEN_IDS),
    ]
)


def make_rows(num_rows: int, seed: int = 0, **overrides: Any) -> list[dict[str, Any]]:
    """Return rows of sums with one to six digits, so that lengths differ; ``overrides`` replace columns."""
    rng = random.Random(seed)
    tokenizer = build_character_tokenizer(CHARACTERS)
    rows = []
    for _ in range(num_rows):
        a, b = (rng.randrange(10 ** rng.randint(1, 6)) for _ in range(2))
        prompt, completion = f"{a}+{b}=", str(a + b)
        rows.append(
            {
                "prompt_id": f"{rng.getrandbits(128):032x}",
                "status": "accepted",
                "prompt": json.dumps([{"role": "user", "content": prompt}]),
                "completion": completion,
                "prompt_token_ids": [1, *tokenizer(prompt)["input_ids"]],
                "completion_token_ids": [*tokenizer(completion)["input_ids"], 2],
            }
            | overrides
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]], row_group_size: int | None = None) -> DataFile:
    """Write rows to Parquet and describe the file."""
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path, row_group_size=row_group_size)
    return DataFile(str(path), len(rows), sha256_of(str(path)))


def save_tokenizer(path: Path, chat_template: str | None = CHAT_TEMPLATE) -> str:
    """Save the character tokenizer and return its directory."""
    build_character_tokenizer(CHARACTERS, chat_template).save_pretrained(path)
    return str(path)


def make_job(root: Path, num_rows: int = 200, model_type: str = "llama", **overrides: Any) -> TrainJob:
    """Return a job of a dozen steps over ``num_rows`` rows in two files under ``root``.

    Keywords of TrainJob replace its fields, all others those of its training configuration.
    """
    root.mkdir(parents=True, exist_ok=True)
    rows = make_rows(num_rows)
    half = num_rows // 2
    fields: dict[str, Any] = {
        "name": "tiny",
        "files": (write_rows(root / "a.parquet", rows[:half]), write_rows(root / "b.parquet", rows[half:])),
        "tokenizer": save_tokenizer(root / "tokenizer"),
        "output_dir": str(root / "out"),
        "init": {"model_type": model_type, "arguments": LLAMA},
    }
    settings: dict[str, Any] = {
        "sequence_length": 48,
        "batch_sequences": 8,
        "micro_batch_sequences": 4,
        "max_steps": 12,
        "dtype": "float32",
        "evaluation_fraction": 0.1,
        "evaluate_every": 6,
        "checkpoint_every": 5,
        "log_every": 1,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
    }
    for key, value in overrides.items():
        (fields if key in TrainJob.__dataclass_fields__ else settings)[key] = value
    return TrainJob(training=TrainingConfig(**settings), **fields)
