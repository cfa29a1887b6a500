"""How much each client keeps under way."""

import pytest

from cluster.phases.generate import window_rows
from configs.schema import EngineConfig, GenerationConfig, TeacherConfig

pytestmark = pytest.mark.unit


def test_window_rows_of_the_recipe_are_taken() -> None:
    assert window_rows(GenerationConfig(window_rows=7), TeacherConfig(model="m")) == 7


@pytest.mark.parametrize(
    ("max_num_seqs", "replicas", "clients", "rows"), [(256, 1, 1, 384), (256, 4, 2, 768), (8, 1, 1, 12), (1, 1, 9, 1)]
)
def test_window_rows_of_all_clients_are_half_more_than_is_decoded(
    max_num_seqs: int, replicas: int, clients: int, rows: int
) -> None:
    teacher = TeacherConfig(model="m", engine=EngineConfig(max_num_seqs=max_num_seqs), max_replicas=replicas)
    assert window_rows(GenerationConfig(clients=clients), teacher) == rows
