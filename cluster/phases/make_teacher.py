"""MAKE TEACHER: trains the home-made teacher of a recipe with the project's own trainer, once for all runs."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from cluster.context import RunContext
from cluster.models import made_teacher_dir
from cluster.training_run import run_training
from configs.schema import Device, MakeTeacherConfig
from configs.table import TOKEN_IDS, RowStatus
from services.addition import CHARACTERS, CHAT_TEMPLATE, draw_problems
from services.prompts import make_prompt
from training.job import DataFile, TrainJob
from training.output import load_result

_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("status", pa.string()),
        ("prompt_token_ids", TOKEN_IDS),
        ("completion_token_ids", TOKEN_IDS),
    ]
)


def make_teacher(ctx: RunContext) -> dict[str, Any] | None:
    """Train the teacher unless it is there; returns the phase's record, None when the recipe loads a teacher."""
    make = ctx.config.pool[ctx.config.main_teacher].make
    if make is None:
        return None
    directory = made_teacher_dir(make, ctx.run_dir)
    if (record := ctx.run_dir.phase_record("make_teacher")) and (directory / "training" / "result.json").exists():
        return record
    return ctx.finish("make_teacher", lambda: _train(ctx, make, directory))


def _train(ctx: RunContext, make: MakeTeacherConfig, directory: UPath) -> dict[str, Any]:
    job = TrainJob(
        name="teacher",
        files=(_write_lessons(make, directory),),
        tokenizer=str(directory / "tokenizer"),
        init=make.model.model_dump(),
        output_dir=str(directory / "training"),
        training=make.training,
    )
    cached = load_result(job) is not None
    (result,) = run_training(ctx, [job], Device.CPU)
    return {"model": result.hf_dir, "cached": cached, "num_steps": result.num_steps, "final_loss": result.final_loss}


def _write_lessons(make: MakeTeacherConfig, directory: UPath) -> DataFile:
    """Worked problems as token ids, in the form of the completions table; the same bytes for the same recipe."""
    record = directory / "lessons.json"
    if record.exists():
        return DataFile(**json.loads(record.read_text()))
    from training.tokenizer import build_character_tokenizer  # imports transformers

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_character_tokenizer(CHARACTERS, CHAT_TEMPLATE)
    tokenizer.save_pretrained(str(directory / "tokenizer"))
    rows = []
    for problem in draw_problems(make.addition, held_out=False):
        prompt = make_prompt([{"role": "user", "content": problem.prompt}])
        rows.append(
            {
                "prompt_id": prompt.prompt_id,
                "status": RowStatus.ACCEPTED.value,
                "prompt_token_ids": tokenizer.encode(f"{tokenizer.bos_token}{problem.prompt}"),
                "completion_token_ids": tokenizer.encode(f"{problem.solution}{tokenizer.eos_token}"),
            }
        )
    path = directory / "lessons.parquet"
    with path.open("wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), file)
    lessons = DataFile(str(path), len(rows), hashlib.sha256(path.read_bytes()).hexdigest())
    record.write_text(json.dumps(asdict(lessons)))
    return lessons
