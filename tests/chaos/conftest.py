"""Options of the chaos tests, and the cluster that the tests share."""

from collections.abc import Iterator

import pytest

from tests.chaos.harness import Chaos, chaos_cluster

FIRST_SEED = 20_000


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--chaos-schedules", type=int, default=4, help="random schedules of kills that are tried")
    group.addoption("--chaos-seed", type=int, default=FIRST_SEED, help="seed of the first; the next ones follow")


@pytest.fixture(scope="session")
def chaos() -> Iterator[Chaos]:
    with chaos_cluster() as cluster:
        yield cluster
