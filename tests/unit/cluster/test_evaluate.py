"""What the accuracies say together."""

import pytest

from cluster.phases.evaluate import gap_closed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("teacher", "before", "after", "gap"),
    [
        (1.0, 0.0, 0.9, 0.9),
        (0.9, 0.1, 0.5, 0.5),
        (0.8, 0.4, 0.4, 0.0),
        (0.8, 0.4, 0.8, 1.0),
        (0.8, 0.4, 0.9, 1.25),  # better than its teacher
        (0.8, 0.4, 0.2, -0.5),  # worse than it was
    ],
)
def test_gap_closed_is_the_share_of_the_way_to_the_teacher(
    teacher: float, before: float, after: float, gap: float
) -> None:
    assert gap_closed(teacher, before, after) == pytest.approx(gap)


@pytest.mark.parametrize(("teacher", "before"), [(0.5, 0.5), (0.4, 0.5), (0.0, 0.0)])
def test_gap_closed_without_a_gap_is_none(teacher: float, before: float) -> None:
    assert gap_closed(teacher, before, 0.7) is None
