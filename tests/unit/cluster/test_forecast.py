"""What a run is expected to take, by formula and as it was measured, and what is said of it afterwards."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.calibrate import MOST_STEPS, STEPS, make_miniature, read_calibration, read_steps
from cluster.calibration import (
    Calibration,
    PhaseSpeed,
    TeacherSpeed,
    calibration_key,
    load_calibration,
    save_calibration,
)
from cluster.context import RunContext
from cluster.estimate import Shapes, read_shapes
from cluster.forecast import (
    Lengths,
    PhaseEstimate,
    Work,
    count_steps,
    estimate_phases,
    expected_lengths,
    overlapped_s,
)
from cluster.plan_report import print_plan, words_of_total
from cluster.progress import Progress
from cluster.run_estimate import TimeLeft, compare_estimate, estimate_lines
from cluster.usage import Usage, student_accelerator
from configs.load import load_run_config
from configs.prices import load_prices
from configs.schema import RunConfig, TrainingConfig
from tests.unit.cluster.releases import make_student, make_weights
from tests.unit.cluster.runs import make_run, record
from tests.unit.cluster.test_capacity import on_gpus
from tests.unit.configs.trees import make_config
from tests.unit.test_recipes import RECIPES

pytestmark = pytest.mark.unit

MEASURED = Calibration(
    measured_at="2026-01-01 00:00 UTC",
    make_teacher=PhaseSpeed(once_s=10.0, unit_s=0.5),
    generate_once_s=20.0,
    teachers={"teacher": TeacherSpeed(tokens_per_s=1000.0, prompt_tokens=9.0, completion_tokens=30.0, device="cpu")},
    train=PhaseSpeed(once_s=5.0, unit_s=0.25),
    evaluate=PhaseSpeed(once_s=3.0, unit_s=0.01),
    student_device="cpu",
)


def work_of(config: RunConfig, prompts: int, problems: int = 0, *, characters: float = 400.0) -> Work:
    lengths = {name: expected_lengths(config, name, characters, None) for name in config.pool}
    return Work(dict.fromkeys(config.pool, prompts), lengths, problems, makes_teacher=True)


def by_phase(phases: list[PhaseEstimate]) -> dict[str, PhaseEstimate]:
    return {each.phase: each for each in phases}


def test_formulas_say_tokens_time_and_cost_of_each_phase(tmp_path: Path) -> None:
    config = on_gpus(tmp_path, sampling__max_tokens=2000, sampling__n=2, training__max_steps=None)
    found = by_phase(estimate_phases(config, load_prices(), read_shapes(config), work_of(config, 10_000)))
    generate, train = found["generate"], found["train"]
    assert generate.tokens == 10_000 * 2 * 1000
    assert generate.usd == pytest.approx(generate.seconds / 3600 * 3.0, rel=1e-3)
    assert train.tokens == pytest.approx(10_000 * 2 * (100 + 1000) * config.training.epochs, rel=1e-3)
    assert train.devices == "8 H100"


def test_measured_speeds_take_the_place_of_formulas() -> None:
    config = make_config(
        student__control=True,
        acceptance__verifier="exact_answer",
        training__max_steps=100,
        teacher__max_replicas=2,
        evaluation={"addition": {"num_problems": 50}},
    )
    work = Work({"teacher": 1950}, {"teacher": Lengths(9, 30)}, 50, makes_teacher=True)
    seconds = {
        each.phase: each.seconds for each in estimate_phases(config, load_prices(), read_shapes(config), work, MEASURED)
    }
    assert seconds == {
        "make_teacher": 10 + 10 * 0.5,
        "generate": 20 + 2000 * 30 / 1000 / 2,
        "train": 5 + 2 * 100 * 0.25,  # the control student as well
        "evaluate": 3 + 50 * 0.01 * 3 / 2,  # three students where two were measured
    }


@pytest.mark.parametrize(("max_steps", "in_common_s"), [(250, 33.75), (500, 32.5), (10, 7.5), (125, 36.25)])
def test_phases_side_by_side_share_the_first_pass_over_the_rows(max_steps: int, in_common_s: float) -> None:
    """16,000 rows of 50 tokens are 125 steps of 100 sequences of 64, a quarter of a second each and 5 s in all."""
    settings = {"sequence_length": 64, "batch_sequences": 100, "max_steps": max_steps}
    config = make_config(training=settings, teacher__max_replicas=2, cluster__phases="overlapped")
    work = Work({"teacher": 16_000}, {"teacher": Lengths(10, 40)}, 0, makes_teacher=False)
    phases = estimate_phases(config, load_prices(), read_shapes(config), work, MEASURED)
    assert by_phase(phases)["generate"].seconds > in_common_s
    assert overlapped_s(config, work, phases) == pytest.approx(in_common_s)
    short = [PhaseEstimate("generate", 1, 3.0, None, ""), by_phase(phases)["train"]]
    assert overlapped_s(config, work, short) == 3.0
    in_turn = make_config(training=settings, teacher__max_replicas=2)
    assert overlapped_s(in_turn, work, phases) == 0.0


def test_teacher_that_is_there_already_takes_no_time() -> None:
    config = make_config()
    work = Work({"teacher": 10}, {"teacher": Lengths(9, 30)}, 0, makes_teacher=False)
    assert "make_teacher" not in by_phase(estimate_phases(config, load_prices(), read_shapes(config), work, MEASURED))


def test_home_made_teacher_is_expected_to_answer_as_long_as_its_lessons() -> None:
    lengths = expected_lengths(make_config(), "teacher", 400.0, MEASURED)
    assert lengths.prompt == pytest.approx(9, abs=0.5)
    assert lengths.completion == pytest.approx(30, abs=1)


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"batch_sequences": 4, "sequence_length": 100, "epochs": 2}, 2 * 50),  # 20,000 tokens in steps of 400
        ({"batch_sequences": None, "batch_tokens": 300, "epochs": 1}, 50),  # 15,000 loss tokens
        ({"max_steps": 7}, 7),
    ],
)
def test_steps_follow_from_rows(training: dict[str, Any], steps: int) -> None:
    assert count_steps(TrainingConfig.model_validate(training), 200, Lengths(25, 75))[0] == steps


def test_calibration_is_of_shapes_and_settings_and_not_of_amounts(tmp_path: Path) -> None:
    config = make_config(run_dir=str(tmp_path / "a"))
    save_calibration(config, MEASURED)
    more = make_config(run_dir=str(tmp_path / "b"), training__max_steps=999, prompts__limit=5, budget__max_usd=1.0)
    assert load_calibration(more) == MEASURED
    other = make_config(run_dir=str(tmp_path / "a"), teacher__engine__max_num_seqs=8)
    assert load_calibration(other) is None


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_recipe_has_a_miniature(recipe: Path) -> None:
    config = load_run_config(recipe)
    miniature = make_miniature(config, "/elsewhere/run")
    # Thirty steps of a tiny student are over before the machine has settled.
    assert miniature.training.max_steps == (MOST_STEPS if recipe.stem == "quickstart" else STEPS)
    assert miniature.prompts.limit is not None
    assert miniature.prompts.limit * miniature.sampling.n <= 2048
    assert all(teacher.max_replicas == 1 for teacher in miniature.pool.values())
    assert calibration_key(config) != calibration_key(miniature)


def test_calibration_counts_on_a_cluster_whatever_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alone, submitting = make_config(), make_config(cluster__address="auto")
    assert calibration_key(alone) != calibration_key(submitting)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")  # as a job finds the same cluster
    assert calibration_key(alone) == calibration_key(submitting)


WRITTEN, LEARNT = PhaseEstimate("generate", 1, 60.0, 24.0, ""), PhaseEstimate("train", 1, 40.0, 1.0, "")
UNPRICED = replace(LEARNT, usd=None)


@pytest.mark.parametrize(
    ("phases", "to_do", "words"),
    [
        ([WRITTEN, LEARNT], ["generate", "train"], "90 s and $25 together"),
        (
            [WRITTEN, UNPRICED],
            ["generate", "train"],
            "90 s and at least $24 together, without the price of train, whose device has none",
        ),
        (
            [WRITTEN],
            ["make_teacher", "generate", "train"],
            "at least 50 s and at least $24 together, without make_teacher and train, whose model or device",
        ),
        (
            [UNPRICED],
            ["generate", "train", "evaluate"],
            "at least 30 s together, without the price of train, whose device has none, without generate and evaluate",
        ),
        ([], ["generate", "train"], "no total, without generate and train, whose model or device is not known yet"),
    ],
)
def test_total_of_a_plan_says_what_it_leaves_out(phases: list[PhaseEstimate], to_do: list[str], words: str) -> None:
    found = words_of_total(phases, to_do, 10.0)
    assert found.startswith(words)
    assert (found == words) == (not found.endswith("measures)"))


def test_plan_names_every_phase_of_a_model_that_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.plan_report.read_shapes", lambda config: Shapes(dict.fromkeys(config.pool), None))
    print_plan(make_config(run_dir=str(tmp_path / "run")))
    [total] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("expected  ")]
    assert total.startswith("expected  no total, without make_teacher and generate and train, ")


def test_steps_are_read_from_the_second_half_without_the_last_line(tmp_path: Path) -> None:
    """Half-full steps of 0.2 s between a slow start and an evaluation; a full one takes twice as long."""
    seconds = [9.0, 4.0, 2.0, 1.0, 1.0, 6.0]
    training = TrainingConfig(sequence_length=100, batch_sequences=4)
    lines = [metrics_line(5 * (i + 1), each, tokens=5 * 180) for i, each in enumerate(seconds)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    speed = read_steps(str(tmp_path), training, phase_s=30.0)
    assert speed.unit_s == pytest.approx(0.2 * 4 * 100 * 0.9 / 180)
    assert speed.once_s == pytest.approx(30.0 - 30 * 0.2)


RESULT = {
    "num_steps": 30,
    "loss_tokens": 1,
    "final_loss": 1.0,
    "evaluation_loss": None,
    "rows": 10,
    "evaluation_rows": 0,
    "overlong_dropped": 0,
    "packing_fill": 0.9,
    "seconds": 20.0,
    "hf_dir": "x",
}


def metrics_line(step: int, seconds: float, tokens: int) -> dict[str, Any]:
    zero = ["epoch", "loss", "learning_rate", "grad_norm", "loss_tokens", "data_wait_s", "checkpoint_blocked_s"]
    rates = {"tokens_per_s": tokens / seconds, "loss_tokens_per_s": tokens / seconds, "seconds": seconds}
    return {**dict.fromkeys(zero, 0), "peak_memory_mib": 0, "time": 0, "step": step, "num_steps": 30, **rates}


def test_calibration_is_read_from_what_the_phases_recorded(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    changed = {"teacher": {"model": str(make_weights(tmp_path / "teacher"))}, "terms": {"teacher": {"license": "own"}}}
    config = make_config(
        **changed, run_dir=str(run_dir.root), training__batch_sequences=4, training__sequence_length=100
    )
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        trained = make_student(ctx).parent
        lines = [metrics_line(5 * (i + 1), 1.0, tokens=5 * 300) for i in range(6)]
        (trained / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
        (trained / "job.json").write_text(json.dumps({"device": "cpu"}))
        speeds = {"tokens_per_s": {"teacher": 500.0}, "writing_s": 5.25, "devices": {"teacher": "cpu"}}
        record(run_dir, "generate", **speeds)
        record(run_dir, "evaluate", problems=10, answering_s=3.0)
        measured = read_calibration(ctx)
    assert measured.make_teacher is None
    assert measured.generate_once_s == 20.25 - 5.25
    assert measured.train.unit_s == pytest.approx(0.2)
    assert measured.train.once_s == pytest.approx(30.0 - 30 * 0.2)
    assert measured.evaluate == PhaseSpeed(once_s=1.0, unit_s=0.3)
    teacher = measured.teachers["teacher"]
    assert (teacher.completion_tokens, teacher.device, measured.student_device) == (2.0, "cpu", "cpu")
    assert teacher.tokens_per_s == 500.0  # the formula does not know so small a model's sizes


def test_estimate_is_held_against_what_happened() -> None:
    estimate = {
        "calibrated_at": None,
        "phases": [
            {"phase": "generate", "tokens": 1, "seconds": 30.0, "usd": 0.3, "devices": "1 cpu_core"},
            {"phase": "train", "tokens": 1, "seconds": 90.0, "usd": 1.0, "devices": "2 cpu_core"},
        ],
    }
    usage = [
        Usage("generate", "teacher.teacher", "cpu_core", 1, 40.0, 40.0, 0.4),
        Usage("train", "student", "cpu_core", 2, 60.0, 120.0, 1.0),
    ]
    found = compare_estimate(estimate, {"generate": 40.0, "train": 60.0, "seal": 1.0}, usage)
    assert found is not None
    assert [each["ratio"] for each in found["phases"]] == [0.75, 1.5]
    assert found["total"] == {
        "estimated_s": 120.0,
        "actual_s": 100.0,
        "estimated_usd": 1.3,
        "actual_usd": 1.4,
        "ratio": 1.2,
        "usd_ratio": 0.929,
    }
    assert estimate_lines(found) == [
        "generate 30 of 40 s (0.75), train 90 of 60 s (1.50), together 120 of 100 s (1.20): "
        "expected of actual, by formula, not calibrated",
        "$1.3 of $1.4 for these phases (0.93)",
    ]


def test_estimate_of_phases_side_by_side_does_not_count_a_second_twice() -> None:
    phases = [
        {"phase": name, "tokens": 1, "seconds": 30.0, "usd": 0.3, "devices": ""} for name in ("generate", "train")
    ]
    estimate = {"calibrated_at": None, "phases": phases, "overlapped_s": 20.0}
    found = compare_estimate(estimate, {"generate": 40.0, "train": 60.0}, [], 35.0)
    assert found is not None
    assert (found["total"]["estimated_s"], found["total"]["actual_s"]) == (40.0, 65.0)


def test_time_left_of_phases_side_by_side_is_what_follows_the_teacher(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    left = {}
    for phases in ("in_turn", "overlapped"):
        config = on_gpus(tmp_path, run_dir=str(run_dir.root), training__max_steps=100, cluster__phases=phases)
        with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
            left[phases] = TimeLeft(ctx).after("generate"), TimeLeft(ctx).after("train")
    assert left["overlapped"][0] < left["in_turn"][0]
    assert left["overlapped"][1] == left["in_turn"][1]


def test_time_left_follows_the_answers_without_another_look_at_any_file(tmp_path: Path) -> None:
    """It is asked with every shard: models and tables that are gone by then are not missed."""
    model, run_dir = tmp_path / "model", make_run(tmp_path / "run")
    model.mkdir()
    changed = {"sampling__max_tokens": 8000, "training__max_steps": None, "training__sequence_length": 128}
    config = on_gpus(model, run_dir=str(run_dir.root), **changed)
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        left = TimeLeft(ctx)
        expected_s = left.after("generate")
        shutil.rmtree(model)
        shutil.rmtree(str(run_dir.root))
        assert left.after("generate") == expected_s > left.after("train")
        assert left.after("generate", {"teacher": 10.0}) < expected_s


def test_run_without_an_estimate_has_none_in_its_report() -> None:
    assert compare_estimate(None, {"generate": 1.0}, []) is None


def test_gpu_type_of_the_student_is_the_one_that_teachers_name(tmp_path: Path) -> None:
    assert student_accelerator(on_gpus(tmp_path)) == "H100"
    assert student_accelerator(make_config()) is None
