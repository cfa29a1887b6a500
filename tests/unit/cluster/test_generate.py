"""How much each client keeps under way."""

import pytest

from cluster.phases.generate import window_rows
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit


def test_window_rows_of_the_recipe_are_taken() -> None:
    assert window_rows(make_config(generation__window_rows=7)) == 7


@pytest.mark.parametrize(
    ("max_num_seqs", "replicas", "clients", "rows"), [(256, 1, 1, 320), (256, 4, 2, 640), (8, 1, 1, 10), (1, 1, 9, 1)]
)
def test_window_rows_of_all_clients_are_a_quarter_more_than_is_decoded(
    max_num_seqs: int, replicas: int, clients: int, rows: int
) -> None:
    config = make_config(
        teacher__engine__max_num_seqs=max_num_seqs, teacher__max_replicas=replicas, generation__clients=clients
    )
    assert window_rows(config) == rows
