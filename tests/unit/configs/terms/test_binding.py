"""What was decided on is loaded, and nothing else."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.terms.binding import Binding, Decided, check_binding
from configs.terms.texts import decided_texts

pytestmark = pytest.mark.unit

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def make_model(directory: Path, **texts: str) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    for name, text in texts.items():
        (directory / name.replace("_", ".")).write_text(text)
    return directory


def decided(model: Path) -> Binding:
    return Binding(str(model), None, tuple(decided_texts(model).items()))


def test_model_as_it_was_decided_on_is_loaded(tmp_path: Path) -> None:
    check_binding(decided(make_model(tmp_path / "bare")))
    check_binding(decided(make_model(tmp_path / "licensed", LICENSE="You may.", README_md="license: mit")))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "LICENSE").write_text("You may,"),
        lambda model: (model / "LICENSE").unlink(),
        lambda model: (model / "LICENSE.additional").write_text("But not on Sundays."),
    ],
    ids=["one byte", "removed", "another one"],
)
def test_other_licence_text_is_refused_in_one_sentence_by_name(change: Callable[[Path], None], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", LICENSE="You may.")
    binding = decided(model)
    change(model)
    with pytest.raises(UserError, match=r"model/LICENSE.* has sha256 .*decided on with") as refused:
        check_binding(binding)
    assert "\n" not in str(refused.value)


def test_card_counts_where_there_is_no_licence_text(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", README_md="license: mit")
    binding = decided(model)
    (model / "README.md").write_text("license: llama2")
    with pytest.raises(UserError, match=r"README\.md has sha256"):
        check_binding(binding)


def put_in_cache(cache: Path, repository: str, commit: str, text: str) -> None:
    """A snapshot as the Hub's client lays it out."""
    root = cache / f"models--{repository.replace('/', '--')}"
    make_model(root / "snapshots" / commit, LICENSE=text)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of this test's own, without the Hub."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put_in_cache(tmp_path, "owner/model", COMMIT, "You may.")
    return tmp_path


def test_repository_is_bound_to_its_commit_and_text(cache: Path) -> None:
    texts = (("LICENSE", hashlib.sha256(b"You may.").hexdigest()),)
    check_binding(Binding("owner/model", COMMIT, texts, must_be_pinned=True))
    check_binding(Binding("owner/model", COMMIT, None, must_be_pinned=True))
    check_binding(Binding("owner/model", None, texts))
    with pytest.raises(UserError, match="LICENSE has sha256"):
        check_binding(Binding("owner/model", COMMIT, (("LICENSE", "0" * 64),)))


def test_file_that_came_with_the_weights_is_no_other_than_the_one_decided_on(cache: Path) -> None:
    """The command's cache had the card alone; the replica fetches licence texts as well."""
    snapshot = cache / "models--owner--model" / "snapshots" / COMMIT
    (snapshot / "README.md").write_text("license: mit")
    binding = Binding("owner/model", COMMIT, (("README.md", hashlib.sha256(b"license: mit").hexdigest()),))
    check_binding(binding)
    (snapshot / "README.md").write_text("license: llama2")
    with pytest.raises(UserError, match=r"README\.md has sha256 [0-9a-f]{64}, .*decided on with [0-9a-f]{64}"):
        check_binding(binding)


DECIDED = Decided(("mit",), ("owner/base",), ("mit",))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"README.md": "---\nlicense: llama2\n---"}, "its README.md says 'llama-2-license-2023'"),
        ({"README.md": "---\nlicense: mine\n---"}, "its README.md says 'mine'"),
        ({"README.md": "---\nlicense: [\n---"}, "its README.md cannot be read"),
        ({"LICENSE": "LLAMA 2 COMMUNITY LICENSE AGREEMENT"}, "licence text says 'llama-2-license-2023'"),
        ({"README.md": "---\nbase_model: meta-llama/Llama-2-7b-hf\n---"}, "names the base meta-llama/Llama-2-7b-hf"),
        ({"README.md": "---\nbase_model: nobody/knows\n---"}, "names the base nobody/knows"),
    ],
)
def test_texts_that_the_decision_did_not_see_may_not_say_more(cache: Path, files: dict[str, str], told: str) -> None:
    for name, text in files.items():
        (cache / "models--owner--model" / "snapshots" / COMMIT / name).write_text(text)
    check_binding(Binding("owner/model", COMMIT))
    with pytest.raises(UserError, match=rf"{re.escape(told)}.*owner/model.*decide anew"):
        check_binding(Binding("owner/model", COMMIT, decided=DECIDED))


@pytest.mark.parametrize("base", ["owner/base", "owner/model", "microsoft/Phi-4-mini-instruct"])
def test_texts_that_say_what_was_decided_on_are_loaded(cache: Path, base: str) -> None:
    """A base by a licence that was decided on would have changed nothing."""
    card = cache / "models--owner--model" / "snapshots" / COMMIT / "README.md"
    card.write_text(f"---\nlicense: mit\nbase_model: {base}\n---")
    check_binding(Binding("owner/model", COMMIT, decided=DECIDED))


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12]])
def test_repository_that_may_change_is_refused_where_others_get_the_student(revision: str | None) -> None:
    with pytest.raises(UserError, match=r"owner/model at .* must be a commit"):
        check_binding(Binding("owner/model", revision, must_be_pinned=True))
