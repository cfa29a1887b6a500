"""Models that several tests share; made once, as importing transformers costs seconds."""

from pathlib import Path

import pytest

from tests.integration.program import make_model


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3")


@pytest.fixture(scope="session")
def gpt2_without_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other token ids and no chat template."""
    return make_model(
        tmp_path_factory.mktemp("models") / "gpt2", "gpt2", "z0123456789+=; abcdefghijklmnopqrstuvwxy?.", template=False
    )


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parent of run directories; the home-made teacher in its cache is trained by the first run and used by all."""
    return tmp_path_factory.mktemp("runs")
