"""A run whose student is trained as far as an export looks, and what the release of it is filled from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cluster.context import RunContext
from cluster.phases.seal import seal_dataset
from cluster.phases.train import student_job
from tests.unit.cluster.runs import ACCURACY, STUDENT, record
from training.job import TrainResult
from training.output import write_result

CONFIG = {"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "tie_word_embeddings": True}
BODY, HEAD = 4 * 4 + 4 * 16, 8 * 4
LINES = ({"tokens_per_s": 100.0, "seconds": 2.0}, {"tokens_per_s": 50.0, "seconds": 4.0})  # 400 tokens of rows


def make_student(ctx: RunContext) -> Path:
    """Seal the rows, and leave what training and evaluation leave; returns the trained student's directory."""
    seal_dataset(ctx)
    ctx.run_dir.write_json("phases/plan.json", {"transfer": "token_ids", "seconds": 1.5})
    ledger = ctx.run_dir.read_json("manifest.json")["ledger"]
    record(ctx.run_dir, "generate", ledger=ledger, engine=None, devices={"teacher": "cpu"})
    record(ctx.run_dir, "train", student=STUDENT)
    record(ctx.run_dir, "evaluate", accuracy=ACCURACY, problems=500, gap_closed=0.75, jobs={"student_after": "x"})
    job = student_job(ctx)
    trained = make_weights(Path(job.output_dir, "hf"))
    numbers: dict[str, Any] = {key: STUDENT[key] for key in STUDENT if key != "hf_dir"}
    numbers |= {"evaluation_rows": 0, "overlong_dropped": 0, "seconds": 1.0, "hf_dir": str(trained)}
    write_result(job, TrainResult.from_dict(numbers))
    Path(job.output_dir, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return trained


def make_weights(directory: Path) -> Path:
    """A model's directory of three matrices and a bias."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    tensors = {
        "model.embed_tokens.weight": np.zeros((8, 4), np.float32),
        "model.layers.0.self_attn.q_proj.weight": np.zeros((4, 4), np.float32),
        "model.layers.0.mlp.up_proj.weight": np.zeros((16, 4), np.float32),
        "model.norm.weight": np.ones(4, np.float32),
    }
    save_file(tensors, directory / "model.safetensors")
    return directory
