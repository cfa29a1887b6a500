"""The Grafana dashboard of a run, drawn from the list in `cluster.metrics`.

``python -m cluster.dashboard`` writes it where the manifests take it from; a test compares.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.metrics import EXPORTED_PREFIX, METRICS
from services.gateway.admission import COUNTED, COUNTERS

PATH = Path(__file__).resolve().parent / "kuberay" / "components" / "monitoring" / "stillhouse-dashboard.json"
WIDTH, HEIGHT, COLUMNS = 8, 7, 3
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel: a PromQL expression and its legend."""

    expression: str
    legend: str


# What Ray, Serve, vLLM and the autoscaler measure by themselves, and a run is judged by as well.
OF_THE_CLUSTER: dict[str, tuple[str, tuple[Series, ...]]] = {
    "Teacher replicas": (
        "short",
        (Series("sum by (application) (ray_serve_deployment_replica_healthy)", "{{application}}"),),
    ),
    "Calls waiting for the teacher": (
        "short",
        (Series("sum by (application) (ray_serve_deployment_queued_queries)", "{{application}}"),),
    ),
    "Nodes": (
        "short",
        (
            Series("sum by (node_type) (ray_cluster_active_nodes)", "{{node_type}} active"),
            Series("sum by (node_type) (ray_cluster_pending_nodes)", "{{node_type}} pending"),
        ),
    ),
    "GPU use": ("percent", (Series("avg by (GpuDeviceName) (ray_node_gpus_utilization)", "{{GpuDeviceName}}"),)),
}


def render_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; its variables choose the data source and the run."""
    panels = {**_panels_of_the_run(), **_panels_of_the_gateway(), **OF_THE_CLUSTER}
    return {
        "uid": "stillhouse",
        "title": "stillhouse",
        "tags": ["stillhouse", "ray"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [_panel(index, title, unit, series) for index, (title, (unit, series)) in enumerate(panels.items())],
    }


def _panels_of_the_run() -> dict[str, tuple[str, tuple[Series, ...]]]:
    panels: dict[str, tuple[str, tuple[Series, ...]]] = {}
    for metric in METRICS:
        name = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or metric.key.replace("_", " ")
        series = Series(f'{metric.exported_name}{{run=~"$run"}}', f"{name}, {{{{phase}}}}")
        if metric.unit == "dateTimeFromNow":  # seconds since 1970, which Grafana wants in milliseconds
            series = Series(f"1000 * {series.expression}", series.legend)
        unit, listed = panels.get(metric.panel, (metric.unit, ()))
        panels[metric.panel] = (unit, (*listed, series))
    return panels


def _panels_of_the_gateway() -> dict[str, tuple[str, tuple[Series, ...]]]:
    """What people outside the job ask of the teacher, in five minutes' means."""
    return {
        f"Gateway: {name}/s": (
            "short",
            (
                Series(
                    f'sum by ({label}) (rate(ray_{COUNTED}{name}_total{{run=~"$run"}}[5m]))',
                    f"{{{{{label}}}}}",
                ),
            ),
        )
        for name, (_, label) in COUNTERS.items()
    }


def _variables() -> list[dict[str, Any]]:
    query = f"label_values({EXPORTED_PREFIX}running, run)"
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": DATASOURCE,
            "query": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
        },
    ]


def _panel(index: int, title: str, unit: str, series: tuple[Series, ...]) -> dict[str, Any]:
    row, column = divmod(index, COLUMNS)
    return {
        "id": index + 1,
        "title": title,
        "type": "stat" if unit == "dateTimeFromNow" else "timeseries",
        "datasource": DATASOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": line.expression, "legendFormat": line.legend}
            for i, line in enumerate(series)
        ],
    }


def render_text() -> str:
    """The file's text."""
    return json.dumps(render_dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(render_text(), encoding="utf-8")
