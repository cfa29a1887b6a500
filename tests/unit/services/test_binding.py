"""A replica loads what was decided on, and nothing else."""

from pathlib import Path

import pytest

from configs.errors import UserError
from configs.terms.binding import Binding
from services.teacher import InProcessTeacher

pytestmark = pytest.mark.unit


def test_replica_refuses_before_its_engine_starts(tmp_path: Path) -> None:
    binding = Binding(str(tmp_path), None, (("LICENSE", "0" * 64),))
    with pytest.raises(UserError, match="has sha256 of no file"):
        InProcessTeacher(str(tmp_path), {}, binding)
