"""A finished run's directory without a run: real tables, and phase records as the phases write them."""

from pathlib import Path
from typing import Any

from upath import UPath

from cluster.run_dir import RunDir
from services.dataset import read_ledger, seal
from tests.unit.services.shards import commit_plan, make_plan, make_prompts

SECONDS = {"plan": 1.5, "generate": 20.25, "seal": 0.5, "hand_over": 2.0, "train": 30.0, "evaluate": 4.0, "export": 1.0}
STUDENT = {
    "num_steps": 12,
    "final_loss": 0.25,
    "evaluation_loss": 0.5,
    "loss_tokens": 321,
    "rows": 10,
    "packing_fill": 0.75,
    "hf_dir": "/somewhere",
}
ACCURACY = {"teacher": 0.9, "student_before": 0.1, "student_after": 0.7, "student_control": 0.3}


def make_run(root: Path, *, num_prompts: int = 10, skip: tuple[int, ...] = ()) -> RunDir:
    """A run whose data is there, in shards of four rows, except for skipped ones; each row has two tokens."""
    run_dir = RunDir(UPath(root))
    plan = make_plan(Path(run_dir.prompts_uri), make_prompts(num_prompts))
    commit_plan(Path(run_dir.prompts_uri), Path(run_dir.completions_uri), skip=skip)
    record(run_dir, "plan", rows=plan.num_rows, prompts=plan.num_prompts)
    return run_dir


def make_finished_run(root: Path) -> RunDir:
    """A run with the record of every phase."""
    run_dir = make_run(root)
    ledger = read_ledger(run_dir.completions_uri, 10).to_dict()
    sealed = seal(run_dir.prompts_uri, run_dir.completions_uri, 1)
    run_dir.write_json("manifest.json", sealed.to_dict())
    record(run_dir, "generate", ledger=ledger, engine={"engine": "in_process", "vllm_version": "1"})
    record(run_dir, "seal", ledger=ledger, versions={"completions": sealed.version, "prompts": 1})
    record(run_dir, "hand_over", waited_for=[])
    record(run_dir, "train", student=STUDENT)
    record(run_dir, "evaluate", accuracy=ACCURACY, problems=500, gap_closed=0.75, jobs={})
    record(run_dir, "export", student=run_dir.student_hf, job="x")
    return run_dir


def record(run_dir: RunDir, phase: str, **fields: Any) -> None:
    run_dir.write_json(f"phases/{phase}.json", {**fields, "seconds": SECONDS[phase]})
