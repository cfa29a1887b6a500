"""Objectives from the table to the student: teacher's log-probabilities, and reference answers beside completions."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.schema import ObjectiveConfig, OptimizerConfig
from tests.unit.training.tiny import make_job, make_rows
from training.job import DataFile, JobDevice, TrainJob, TrainResult
from training.loop import train
from training.parallel import joined_world

pytestmark = pytest.mark.integration


def run(job: TrainJob) -> TrainResult:
    with joined_world(JobDevice.CPU) as world:
        return train(job, lambda _: None, world)


def job_on(root: Path, rows: list[dict[str, Any]], **settings: Any) -> TrainJob:
    root.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "rows.parquet")
    files = (DataFile(str(root / "rows.parquet"), len(rows)),)
    return make_job(root, num_rows=2, files=files, optimizer=OptimizerConfig(learning_rate=2e-2), **settings)


def test_train_divergence_alone_learns_the_teachers_distribution_and_not_its_draws(tmp_path: Path) -> None:
    rows = []
    for row in make_rows(300):
        length = len(row["completion_token_ids"])
        # Whatever was drawn, the teacher would have said 5 or 6 at each place, three times in four 5.
        top = {
            "completion_topk_ids": [5, 6] * length,
            "completion_topk_logprobs": [np.log(0.75), np.log(0.25)] * length,
        }
        rows.append(row | top)
    job = job_on(tmp_path / "kl", rows, objective=ObjectiveConfig(kl_weight=1.0), max_steps=40)
    result = run(job)
    model = AutoModelForCausalLM.from_pretrained(result.hf_dir).eval()
    with torch.no_grad():
        probabilities = model(torch.tensor([rows[0]["prompt_token_ids"]])).logits[0, -1].softmax(-1)
    assert result.final_loss < 0.05
    assert probabilities[5].item() == pytest.approx(0.75, abs=0.08)
    assert probabilities[6].item() == pytest.approx(0.25, abs=0.08)


def test_train_ground_truth_adds_a_row_for_each_prompt_with_an_answer(tmp_path: Path) -> None:
    rows = [row | {"sample_index": 0, "answer": "7"} for row in make_rows(100)]
    plain = run(job_on(tmp_path / "plain", rows, max_steps=2))
    mixed = run(job_on(tmp_path / "mixed", rows, max_steps=2, objective=ObjectiveConfig(ground_truth_share=1.0)))
    assert mixed.rows + mixed.evaluation_rows == 2 * (plain.rows + plain.evaluation_rows) == 200
    assert mixed.evaluation_rows == 2 * plain.evaluation_rows, "a prompt's answer is held back with its completions"
