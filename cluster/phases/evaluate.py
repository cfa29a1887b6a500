"""EVALUATE: teacher, student before, student after and control on problems that occur in no training prompt."""

import time
from dataclasses import replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from cluster.context import RunContext
from cluster.phases.generate import teacher_accuracy
from cluster.phases.plan import evaluation_uris
from cluster.phases.train import control_job, student_job
from configs.errors import DeadlineExceeded, UserError
from configs.schema import EvaluationConfig
from services.plan import read_shard
from services.table import shard_files
from services.verifiers import is_correct
from training.job import JobDevice, TrainJob
from training.output import load_result

_LOOK_AT_BUDGET_SECONDS = 5.0  # as often as it is counted


def evaluate(ctx: RunContext) -> dict[str, Any] | None:
    """Measure every student once; None when the recipe has no held-out problems."""
    evaluation = ctx.config.evaluation
    if evaluation is None:
        return None
    students = _students(ctx)
    jobs = {who: f"{job.fingerprint()}:{hf_dir is None}" for who, (job, hf_dir) in students.items()}
    record = ctx.run_dir.phase_record("evaluate")
    if record is not None and record["jobs"] == jobs:
        return record
    return ctx.finish("evaluate", lambda: {**_evaluate(ctx, evaluation, students), "jobs": jobs})


def gap_closed(teacher: float, before: float, after: float) -> float | None:
    """How much of the distance from the untrained student to the teacher was made good; None without a distance."""
    return (after - before) / (teacher - before) if teacher > before else None


def _students(ctx: RunContext) -> dict[str, tuple[TrainJob, str | None]]:
    job = student_job(ctx)
    result = load_result(job)
    if result is None:
        raise UserError("the student is not trained yet; run `stillhouse train` with the same recipe first")
    students: dict[str, tuple[TrainJob, str | None]] = {
        "student_before": (job, None),
        "student_after": (job, result.hf_dir),
    }
    if ctx.config.student.control and (control := load_result(control_job(ctx))) is not None:
        students["student_control"] = (control_job(ctx), control.hf_dir)
    return students


def _evaluate(
    ctx: RunContext, evaluation: EvaluationConfig, students: dict[str, tuple[TrainJob, str | None]]
) -> dict[str, Any]:
    problems = _read_problems(ctx)
    accuracy: dict[str, float | None] = {"teacher": teacher_accuracy(ctx), "student_control": None}
    ctx.progress.expect(len(students), "students")
    answering_s = 0.0
    for who, answers, seconds in _answer_all(ctx, evaluation, students, [each["prompt"] for each in problems]):
        correct = [
            is_correct(evaluation.verifier, answer, problem["answer"])
            for answer, problem in zip(answers, problems, strict=True)
        ]
        accuracy[who] = sum(correct) / len(correct)
        answering_s = max(answering_s, seconds)
        _write_answers(ctx, who, problems, answers, correct)
        ctx.progress.say(f"evaluate: {who.replace('_', ' ')} solves {accuracy[who]:.1%} of {len(problems)} problems")
    teacher, before, after = accuracy["teacher"], accuracy["student_before"], accuracy["student_after"]
    assert teacher is not None
    assert before is not None
    assert after is not None
    gap = gap_closed(teacher, before, after)
    return {"accuracy": accuracy, "problems": len(problems), "gap_closed": gap, "answering_s": round(answering_s, 3)}


def _answer_all(
    ctx: RunContext,
    evaluation: EvaluationConfig,
    students: dict[str, tuple[TrainJob, str | None]],
    prompts: list[str],
) -> Any:
    """Yield each student's answers as they come, and the seconds that they took; a student is one Ray task."""
    device = JobDevice(ctx.session.device(ctx.config.student.device).value)
    import ray

    @ray.remote(num_cpus=1, num_gpus=1 if device is JobDevice.GPU else 0, max_retries=2)
    def answer(job: TrainJob, hf_dir: str | None) -> tuple[list[str], float]:
        from training.evaluate import answer_prompts

        started = time.monotonic()
        answers = answer_prompts(
            job,
            hf_dir,
            prompts,
            max_tokens=evaluation.max_tokens,
            batch_size=evaluation.batch_size,
            device=device,
        )
        return answers, time.monotonic() - started

    waiting = {answer.remote(replace(job, device=device), hf_dir): who for who, (job, hf_dir) in students.items()}
    give_up_at = time.monotonic() + ctx.config.deadlines.no_progress
    while waiting:
        left_s = max(0.0, give_up_at - time.monotonic())
        done, _ = ray.wait(list(waiting), timeout=min(left_s, _LOOK_AT_BUDGET_SECONDS))
        if not done:
            ctx.budget.check()
            if left_s > 0:
                continue
            raise DeadlineExceeded(
                f"{', '.join(waiting.values())} gave no answers in {ctx.config.deadlines.no_progress:.0f} s "
                "(deadlines.no_progress)"
            )
        yield waiting.pop(done[0]), *ray.get(done[0])
        ctx.progress.update(done=len(students) - len(waiting))
        give_up_at = time.monotonic() + ctx.config.deadlines.no_progress


def _read_problems(ctx: RunContext) -> list[dict[str, Any]]:
    uri, _ = evaluation_uris(ctx)
    return [row for file in shard_files(DeltaTable(uri)) for row in read_shard(uri, file.path).to_pylist()]


def _write_answers(
    ctx: RunContext, who: str, problems: list[dict[str, Any]], answers: list[str], correct: list[bool]
) -> None:
    table = pa.table(
        {
            "prompt_id": [each["prompt_id"] for each in problems],
            "prompt": [each["prompt"] for each in problems],
            "answer": [each["answer"] for each in problems],
            "completion": answers,
            "correct": correct,
        }
    )
    with fsspec.open(ctx.run_dir.uri("evaluation", f"{who}.parquet"), "wb") as file:
        pq.write_table(table, file)
