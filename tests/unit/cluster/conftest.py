"""What several tests of manifests look at."""

import pytest

from tests.unit.cluster.kustomize import Document
from tests.unit.cluster.manifests import APPLIED, documents_of


@pytest.fixture(params=APPLIED)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return documents_of(request.param)
