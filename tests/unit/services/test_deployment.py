"""What Serve is told of a teacher."""

import pytest

from configs.schema import Device, EngineKind, TeacherConfig
from services.deployment import OTHER_CALLS, TeacherApp, _deployment_options

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("window_rows", [1, 384, 24_576])
def test_replica_takes_a_call_for_each_row_of_the_window_and_the_drivers_beside_them(window_rows: int) -> None:
    app = TeacherApp("app", "model", "m", TeacherConfig(model="m"), Device.CPU, EngineKind.IN_PROCESS, window_rows)
    assert _deployment_options(app)["max_ongoing_requests"] == window_rows + OTHER_CALLS
