"""What the student's side knows before it begins, and what is told of both sides afterwards."""

from pathlib import Path
from typing import Any

import pytest

from cluster.context import RunContext
from cluster.phases.overlap import Pace, check_plan, committed_so_far, has_enough
from cluster.phases.plan import evaluation_uris
from cluster.phases.seal import seal_dataset
from cluster.phases.train import student_job, train
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.terms import gate_training
from configs.errors import UserError
from configs.schema import RunConfig
from configs.table import RowStatus
from services.lineage import Lineage
from tests.unit.cluster.test_admission import LINEAGE, WAIVER, config_of
from tests.unit.configs.trees import make_config
from tests.unit.services.shards import (
    commit_plan,
    commit_rows,
    make_plan,
    make_prompts,
    make_row,
    make_rows,
    planned_ids,
)
from training.job import DataFile, StepMetrics
from training.output import write_learnt_files

pytestmark = pytest.mark.unit

OVERLAPPED: dict[str, Any] = {"cluster__phases": "overlapped", "training__max_steps": 12}
METRICS: dict[str, Any] = {
    **{"num_steps": 40, "epoch": 0, "loss": 1.0, "learning_rate": 1e-3, "grad_norm": 1.0, "loss_tokens": 1},
    **{"tokens_per_s": 1.0, "loss_tokens_per_s": 1.0, "checkpoint_blocked_s": 0.0, "peak_memory_mib": 1.0},
}


def context(config: RunConfig) -> RunContext:
    run_dir = RunDir.of(config)
    return RunContext(config, run_dir, Progress(config.name, run_dir))


def planned(root: Path, *, transfer: str = "token_ids", rows: int = 12, **changed: Any) -> RunContext:
    """A run of three shards of four rows, none of them made."""
    ctx = context(make_config(run_dir=str(root), **OVERLAPPED, **changed))
    make_plan(Path(ctx.run_dir.prompts_uri), make_prompts(12))
    commit_plan(Path(ctx.run_dir.prompts_uri), Path(ctx.run_dir.completions_uri), skip=(0, 1, 2))
    ctx.run_dir.write_json("phases/plan.json", {"rows": rows, "shards": 3, "transfer": transfer, "seconds": 1.0})
    return ctx


def make_shard(ctx: RunContext, shard: int, lineage: Lineage = LINEAGE["good"], accepted: int = 4) -> None:
    ids = planned_ids(Path(ctx.run_dir.prompts_uri))[shard]
    rows = [*make_rows(ids[:accepted], shard=shard)]
    rows += [make_row(each, shard=shard, status=RowStatus.REJECTED) for each in ids[accepted:]]
    commit_rows(Path(ctx.run_dir.completions_uri), rows, shard, lineage=lineage)


def line(step: int, time: float, seconds: float, waited_s: float = 0.0) -> StepMetrics:
    return StepMetrics(step=step, time=time, seconds=seconds, data_wait_s=waited_s, **METRICS)


def test_student_has_enough_once_its_first_window_is_full_of_accepted_rows(tmp_path: Path) -> None:
    ctx = planned(tmp_path, training__packing_window_rows=5)
    make_shard(ctx, 2)
    assert not has_enough(ctx)
    make_shard(ctx, 0, accepted=0)
    assert not has_enough(ctx)
    make_shard(ctx, 1, accepted=1)
    assert has_enough(ctx)


def test_student_has_enough_when_no_row_is_pending_however_few_were_accepted(tmp_path: Path) -> None:
    ctx = planned(tmp_path, training__packing_window_rows=100)
    for shard in (1, 2):
        make_shard(ctx, shard)
    assert not has_enough(ctx)
    make_shard(ctx, 0)
    assert has_enough(ctx)


def test_student_waits_for_the_held_out_problems_which_the_teacher_may_fail(tmp_path: Path) -> None:
    ctx = planned(tmp_path, training__packing_window_rows=4, evaluation={"addition": {"num_problems": 4}})
    prompts, answers = map(Path, evaluation_uris(ctx))
    make_plan(prompts, make_prompts(4, start=100))
    commit_plan(prompts, answers, skip=(0,))
    make_shard(ctx, 0)
    assert not has_enough(ctx)
    commit_plan(prompts, answers)
    assert has_enough(ctx)


def test_job_of_a_growing_table_is_that_of_the_sealed_one(tmp_path: Path) -> None:
    ctx = planned(tmp_path)
    make_shard(ctx, 1)
    early = student_job(ctx, committed_so_far(ctx))
    with pytest.raises(UserError, match="no sealed data"):
        student_job(ctx)
    for shard in (0, 2):
        make_shard(ctx, shard)
    seal_dataset(ctx)
    assert student_job(ctx) == early
    assert early.files == ()
    assert early.commits is not None
    assert early.commits.num_files == 3


def test_phases_in_turn_and_overlapped_make_two_students_of_the_same_rows(tmp_path: Path) -> None:
    ctx = planned(tmp_path)
    for shard in range(3):
        make_shard(ctx, shard)
    seal_dataset(ctx)
    in_turn = context(make_config(run_dir=str(tmp_path), training__max_steps=12))
    in_turn.run_dir.claim(in_turn.config)
    ctx.run_dir.claim(ctx.config)  # both may use the directory
    assert len(student_job(in_turn).files) == 3
    assert student_job(in_turn).output_dir != student_job(ctx).output_dir


def revoked(root: Path) -> RunContext:
    """Rows of two teachers, of which one was allowed by a waiver; by now that is gone, and one shard is pending."""
    tree = config_of(root, waivers=[WAIVER]).model_dump(mode="json")
    tree["training"]["max_steps"], tree["cluster"]["phases"] = 12, "overlapped"
    ctx = context(RunConfig.model_validate({**tree, "terms": {**tree["terms"], "waivers": []}}))
    make_plan(Path(ctx.run_dir.prompts_uri), make_prompts(12))
    ctx.run_dir.write_json("phases/plan.json", {"rows": 12, "shards": 3, "transfer": "token_ids", "seconds": 1.0})
    make_shard(ctx, 0, LINEAGE["bad"])
    return ctx


def test_rows_that_are_not_allowed_any_more_are_left_out_before_there_is_a_seal(tmp_path: Path) -> None:
    ctx = revoked(tmp_path)
    make_shard(ctx, 1, LINEAGE["good"])
    job, admission = student_job(ctx, committed_so_far(ctx)), gate_training(ctx.config, committed_so_far(ctx))
    assert [each["teacher_repo"] for each in job.excluded] == [LINEAGE["bad"].teacher_repo]
    assert [each.accepted for each in admission.quarantined] == [4]


def test_student_does_not_begin_when_none_of_the_rows_so_far_is_allowed_any_more(tmp_path: Path) -> None:
    ctx = revoked(tmp_path)
    with pytest.raises(UserError, match="is denied"):
        gate_training(ctx.config, committed_so_far(ctx))


def test_student_that_read_what_was_not_sealed_is_refused(tmp_path: Path) -> None:
    ctx = planned(tmp_path)
    for shard in range(3):
        make_shard(ctx, shard)
    seal_dataset(ctx)
    write_learnt_files(student_job(ctx), [DataFile("elsewhere.parquet", 4, "0" * 64)])
    with pytest.raises(UserError, match=r"elsewhere.parquet, which is not among the sealed files"):
        train(ctx)


def test_plan_that_has_rows_tokenised_anew_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.phases=overlapped.*different tokenizers"):
        check_plan(planned(tmp_path, transfer="text"))


@pytest.mark.parametrize(("window", "is_said"), [(150, False), (151, True)])
def test_window_that_makes_the_student_begin_late_is_said(
    tmp_path: Path, window: int, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    check_plan(planned(tmp_path, rows=1000, training__packing_window_rows=window))
    assert ("the first step waits for training.packing_window_rows" in capsys.readouterr().err) is is_said


def test_pace_tells_start_first_step_and_what_is_left_without_the_waits() -> None:
    pace = Pace(asked_at=100.0)
    pace.count(line(10, time=130.0, seconds=20.0, waited_s=10.0), log_every=10)
    assert (pace.start_s, pace.first_step_at) == (10.0, 121.0)  # ten steps of a second, the last at 130
    pace.count(line(20, time=150.0, seconds=20.0, waited_s=0.0), log_every=10)
    assert pace.left_s == pytest.approx(1.5 * 20)


def test_pace_does_not_count_lines_of_an_earlier_command() -> None:
    pace = Pace(asked_at=100.0)
    pace.count(line(10, time=50.0, seconds=40.0), log_every=10)
    assert (pace.first_step_at, pace.left_s) == (None, 0.0)
    pace.count(line(15, time=120.0, seconds=5.0), log_every=10)  # five steps since its checkpoint
    assert (pace.steps, pace.left_s) == (5, 25.0)


def test_terms_work_of_phases_side_by_side_is_recorded_once(tmp_path: Path) -> None:
    ctx = context(make_config(run_dir=str(tmp_path)))
    beside = ctx.beside(ctx.progress)
    with ctx.terms_work("lineage"):
        pass
    beside.finish("train", dict)
    with beside.terms_work("admit"):
        pass
    ctx.finish("generate", dict)
    recorded = [(ctx.run_dir.phase_record(phase) or {})["terms_s"].keys() for phase in ("train", "generate")]
    assert recorded == [{"lineage"}, {"admit"}]
