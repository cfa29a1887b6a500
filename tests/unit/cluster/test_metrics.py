"""What Prometheus gets of a run, and that the dashboard draws exactly that."""

import ast
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from cluster.dashboard import PATH, render_dashboard, render_text
from cluster.metrics import EXPORTED_PREFIX, METRICS, closing_values, metric_values
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.status import status_lines
from configs.table import RowStatus
from services.dataset import read_rows_by_teacher
from services.gateway.admission import COUNTED, COUNTERS
from tests.unit.cluster.runs import record
from tests.unit.services.shards import commit_rows, make_row

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
KEYS = [metric.key for metric in METRICS]
STATE: dict[str, Any] = {"phase": "generate", "done": 0, "total": 0, "entered": 2.0, "updated": 5.0, "numbers": {}}


class RecordedGauge:
    """Stands for Ray's gauge: keeps the last value of each name with its tags, run and phase first, as Ray does."""

    values: dict[tuple[str, ...], float]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        assert tag_keys[:2] == ("run", "phase")
        self.name, self.tag_keys = name, tag_keys

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tags.keys() == set(self.tag_keys)
        self.values[self.name, *(tags[key] for key in self.tag_keys)] = value


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """The values that a process in a cluster hands to Ray."""
    import ray.util.metrics

    RecordedGauge.values = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util.metrics, "Gauge", RecordedGauge)
    return RecordedGauge.values


def reported_keys() -> set[str]:
    """Names of the numbers that any module gives to ``Progress.update``, read from the source."""
    keys = set()
    for path in (ROOT / "cluster").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("progress.update"):
                assert all(keyword.arg for keyword in call.keywords), f"{path}: give each number its name"
                keys |= {str(keyword.arg) for keyword in call.keywords}
    return keys - {"done", "detail", "later_s"}


def test_every_number_that_a_phase_reports_is_listed() -> None:
    assert {"accepted", "loss", "mfu"} <= reported_keys()
    assert reported_keys() - set(KEYS) == set()


def test_every_listed_number_is_reported_or_derived() -> None:
    derived = metric_values({**STATE, "total": 10, "later_s": 5.0}, eta_s=1.0)
    assert derived["run_eta_s"] == 6.0
    assert {metric.key for metric in METRICS if metric.labels} <= reported_keys()
    assert set(KEYS) == reported_keys() | set(derived)


def test_metric_names_are_ones_that_ray_takes() -> None:
    assert len(set(KEYS)) == len(KEYS)
    assert [metric.name for metric in METRICS if not re.fullmatch(r"[a-z_][a-z0-9_]*", metric.name)] == []


def test_values_of_a_phase_that_counts_have_its_backlog() -> None:
    state = STATE | {"done": 8, "total": 10, "numbers": {"accepted": 7, "failed": 1, "unlisted": 3}}
    values = metric_values(state, eta_s=12.0)
    assert values == {
        "running": 1,
        "last_sign": 5,
        "elapsed_s": 3,
        "eta_s": 12,
        "done": 8,
        "total": 10,
        "backlog": 2,
        "accepted": 7,
        "failed": 1,
    }


def test_values_of_a_phase_that_does_not_count_leave_out_what_is_unknown() -> None:
    assert metric_values(STATE, eta_s=None) == {"running": 1, "last_sign": 5, "elapsed_s": 3}


def test_closing_a_phase_ends_its_rates_and_keeps_its_results() -> None:
    values = {"running": 1.0, "tokens_per_s": 900.0, "eta_s": 3.0, "accepted": 7.0, "loss": 0.5}
    assert closing_values(values) == {"running": 0, "tokens_per_s": 0, "eta_s": 0, "accepted": 7, "loss": 0.5}


def test_progress_on_a_cluster_records_each_phase_under_its_name(
    tmp_path: Path, recorded: dict[tuple[str, ...], float]
) -> None:
    before = time.time()
    with Progress("small", RunDir(UPath(tmp_path))) as progress:
        with progress.phase("generate"):
            progress.expect(10, "rows")
            progress._file_at = 0.0  # a second later
            progress.update(done=8, accepted=8, tokens_per_s=100.0)
            assert recorded["stillhouse_running", "small", "generate"] == 1
            assert recorded["stillhouse_tokens_per_s", "small", "generate"] == 100
        with progress.phase("train"):
            assert recorded["stillhouse_running", "small", "generate"] == 0
            assert recorded["stillhouse_running", "small", "train"] == 1
    assert recorded["stillhouse_running", "small", "train"] == 0
    assert recorded["stillhouse_tokens_per_s", "small", "generate"] == 0
    assert recorded["stillhouse_accepted", "small", "generate"] == 8
    assert recorded["stillhouse_backlog", "small", "generate"] == 2
    assert recorded["stillhouse_last_sign", "small", "train"] >= before
    assert 0 <= recorded["stillhouse_elapsed_s", "small", "generate"] <= time.time() - before


def test_rows_of_each_teacher_are_recorded_as_status_shows_them(
    tmp_path: Path, recorded: dict[tuple[str, ...], float]
) -> None:
    run_dir = RunDir(UPath(tmp_path))
    completions = Path(run_dir.completions_uri)
    commit_rows(completions, [make_row("a" * 32), make_row("b" * 32, status=RowStatus.FAILED)], 0, "small")
    commit_rows(completions, [make_row("c" * 32, shard=1)], 1, "large")
    record(run_dir, "plan", rows=3)
    rows = read_rows_by_teacher(run_dir.completions_uri)
    with Progress("two", run_dir) as progress, progress.phase("generate"):
        progress._file_at = 0.0  # a second later
        progress.update(teacher_rows=rows)
        rows["large"]["failed"] = 9  # counted on, and not reported yet
        progress._show(now=True)
        shown = [line.split() for line in status_lines(run_dir) if line.startswith(("large", "small"))]
    found = {key[3:]: value for key, value in recorded.items() if key[0] == "stillhouse_teacher_rows"}
    assert len(found) == 6
    assert found["small", "accepted"] == found["small", "failed"] == found["large", "accepted"] == 1
    counts = [
        (name, state, float(count))
        for name, *words in shown
        for count, state in zip(words[::3], words[1::3], strict=True)
    ]
    assert sorted(counts) == sorted((*key, value) for key, value in found.items())


def test_progress_of_a_phase_that_fails_is_not_running(tmp_path: Path, recorded: dict[tuple[str, ...], float]) -> None:
    progress = Progress("small", RunDir(UPath(tmp_path)))
    with pytest.raises(ValueError, match="no"), progress, progress.phase("generate"):
        raise ValueError("no")
    assert recorded["stillhouse_running", "small", "generate"] == 0


def test_progress_outside_a_cluster_records_nothing(
    tmp_path: Path, recorded: dict[tuple[str, ...], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with Progress("small", RunDir(UPath(tmp_path))) as progress, progress.phase("plan"):
        progress.update(done=1)
    assert recorded == {}


def test_dashboard_file_is_the_one_that_the_list_makes() -> None:
    assert PATH.read_text() == render_text(), "run: python -m cluster.dashboard"


def test_dashboard_draws_every_metric_once_and_no_other() -> None:
    text = json.dumps(render_dashboard()["panels"])
    drawn = re.findall(rf"{EXPORTED_PREFIX}\w+", text)
    of_the_gateway = [f"ray_{COUNTED}{name}_total" for name in COUNTERS]
    assert sorted(drawn) == sorted([*(metric.exported_name for metric in METRICS), *of_the_gateway])


def test_dashboard_panels_are_titled_apart_and_do_not_overlap() -> None:
    panels = render_dashboard()["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
