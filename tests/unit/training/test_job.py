"""A job is plain data: it survives JSON, names what decides the result, and loads without torch or Ray."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import OptimizerConfig, TrainingConfig
from configs.terms.binding import Binding, Decided
from training.__main__ import main
from training.job import DataFile, JobDevice, TrainJob, Transfer

JOB = TrainJob(
    name="student",
    files=(DataFile("s3://bucket/a.parquet", 512, "ab" * 32), DataFile("b.parquet", 3)),
    tokenizer="tokenizer",
    output_dir="runs/student",
    transfer=Transfer.TEXT,
    init={"model_type": "llama", "arguments": {"hidden_size": 64}},
    training=TrainingConfig(optimizer=OptimizerConfig(learning_rate=3e-4)),
    device=JobDevice.GPU,
    template_kwargs={"enable_thinking": False},
)


def test_train_job_json_round_trip_is_equal() -> None:
    assert TrainJob.from_json(JOB.to_json()) == JOB


def test_train_job_with_a_binding_json_round_trip_is_equal() -> None:
    texts = (("LICENSE", "0" * 64),)
    bound = Binding("owner/model", "a" * 40, texts, must_be_pinned=True, decided=Decided(("mit",), ("owner/base",)))
    for binding in (bound, replace(bound, texts=None, decided=None)):
        job = replace(JOB, init=None, model="owner/model", tokenizer_revision="a" * 40, binding=binding)
        assert TrainJob.from_json(job.to_json()) == job


def test_train_job_written_before_there_were_bindings_is_read() -> None:
    data = json.loads(JOB.to_json())
    del data["binding"], data["tokenizer_revision"]
    assert TrainJob.from_json(json.dumps(data)) == JOB


def test_train_job_unknown_key_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        TrainJob.from_json(JOB.to_json().replace('"name"', '"colour"'))


@pytest.mark.parametrize(
    "other",
    [
        replace(JOB, name="other"),
        replace(JOB, output_dir="elsewhere"),
        replace(JOB, device=JobDevice.CPU),
        replace(JOB, binding=Binding("owner/model")),
        replace(JOB, files=(replace(JOB.files[0], path="moved.parquet"), JOB.files[1])),
        replace(JOB, training=JOB.training.model_copy(update={"num_workers": 8, "log_every": 3, "max_failures": 9})),
    ],
)
def test_fingerprint_what_decides_nothing_learnt_keeps_it(other: TrainJob) -> None:
    assert other.fingerprint() == JOB.fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        replace(JOB, files=(replace(JOB.files[0], sha256="cd" * 32), JOB.files[1])),
        replace(JOB, files=JOB.files[:1]),
        replace(JOB, template_kwargs={}),
        replace(JOB, tokenizer_revision="a" * 40),
        replace(JOB, init={"model_type": "llama", "arguments": {"hidden_size": 32}}),
        replace(JOB, training=JOB.training.model_copy(update={"seed": 1})),
        replace(JOB, training=TrainingConfig(optimizer=OptimizerConfig(learning_rate=3e-5))),
    ],
)
def test_fingerprint_what_decides_the_result_changes_it(other: TrainJob) -> None:
    assert other.fingerprint() != JOB.fingerprint()


def test_training_job_import_loads_neither_torch_nor_ray() -> None:
    code = "import sys, training.job; sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_program_refuses_what_is_no_job(
    tmp_path: Path, content: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["training", str(path)])
    assert main() == 2
    assert f"error: {path} is not a job that this program has written: " in capsys.readouterr().err
