"""What several tests look at, or give back."""

import signal
from collections.abc import Iterator

import pytest

from tests.unit.cluster.kustomize import Document
from tests.unit.cluster.manifests import APPLIED, documents_of


@pytest.fixture(params=APPLIED)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return documents_of(request.param)


@pytest.fixture
def sigterm_handler() -> Iterator[None]:
    """The program takes SIGTERM for itself; give it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
