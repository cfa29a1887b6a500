"""What a job loads from the Hub is what its plan decided on: the commit, the licence texts, the tokenizer's commit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from configs.terms.binding import Binding
from configs.terms.texts import decided_texts
from tests.unit.training.tiny import CHARACTERS, make_job
from training.job import TrainJob
from training.model import build_model, load_tokenizer
from training.parallel import World
from training.setup import prepare
from training.tokenizer import build_character_tokenizer, find_tokenizer_difference

pytestmark = pytest.mark.unit

WORLD = World(0, 1, torch.device("cpu"))
PINNED, NEWEST = "a" * 40, "b" * 40
REPOSITORY = "owner/student"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJob:
    """A student in a cache as the Hub's client lays it out, without the Hub: a commit, and a newer one that differs."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    job = make_job(tmp_path / "job")
    for commit, characters, seed in ((PINNED, CHARACTERS, 1), (NEWEST, CHARACTERS[::-1], 2)):
        snapshot = root / "snapshots" / commit
        student = replace(job, training=job.training.model_copy(update={"seed": seed}))
        build_model(student, load_tokenizer(job.tokenizer)).save_pretrained(snapshot)
        build_character_tokenizer(characters).save_pretrained(snapshot)
        (snapshot / "LICENSE").write_text(f"You may, says {commit}.")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(NEWEST)
    texts = tuple(decided_texts(root / "snapshots" / PINNED).items())
    binding = Binding(REPOSITORY, PINNED, texts, must_be_pinned=True)
    return replace(
        job,
        init=None,
        model=REPOSITORY,
        revision=PINNED,
        tokenizer=REPOSITORY,
        tokenizer_revision=PINNED,
        binding=binding,
        training=job.training.model_copy(update={"check_rows": 0}),
    )


def test_prepare_loads_weights_and_tokenizer_of_the_commit_that_was_pinned(job: TrainJob) -> None:
    setup = prepare(job, WORLD)
    newest = build_model(replace(job, revision=NEWEST), setup.tokenizer)
    pinned = build_model(job, setup.tokenizer)
    (ours, theirs, others) = (m.get_input_embeddings().weight for m in (setup.student.model, pinned, newest))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, others)
    assert setup.tokenizer("0")["input_ids"] == [3]
    assert load_tokenizer(REPOSITORY)("0")["input_ids"] != [3]  # of the newest commit


@pytest.mark.parametrize(
    ("binding", "told"),
    [
        (Binding(REPOSITORY, PINNED, (("LICENSE", "0" * 64),)), r"LICENSE has sha256 .*decided on with 0{64}"),
        (
            Binding(REPOSITORY, None, None, must_be_pinned=True),
            r"at None would be loaded, which may change; .* must be a commit",
        ),
    ],
)
def test_prepare_student_that_was_not_decided_on_is_refused(job: TrainJob, binding: Binding, told: str) -> None:
    with pytest.raises(UserError, match=told):
        prepare(replace(job, binding=binding), WORLD)


def test_find_tokenizer_difference_compares_the_revisions_that_are_named(job: TrainJob) -> None:
    assert find_tokenizer_difference(REPOSITORY, REPOSITORY, PINNED, PINNED) is None
    assert find_tokenizer_difference(REPOSITORY, REPOSITORY, PINNED, NEWEST) is not None
