"""The page tells the report's numbers, needs nothing from outside, and survives what users name things."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from cluster.report_page import render_page

LENGTHS = {"accepted": [10, 12, 14, 200], "rejected": [3], "failed": [0]}


def make_report(**changed: Any) -> dict[str, Any]:
    report = {
        "schema_version": 1,
        "name": "demo",
        "ledger": {"planned": 6000, "accepted": 5887, "rejected": 110, "failed": 3, "pending": 0},
        "accuracy": {"teacher": 0.982, "student_before": 0.0, "student_after": 0.961, "student_control": 0.016},
        "gap_closed": 0.9786,
        "evaluation_problems": 500,
        "tokens": {"teacher_output": 179508, "student_loss": 381229},
        "training": {
            "num_steps": 20,
            "final_loss": 0.0123,
            "evaluation_loss": 0.02,
            "rows": 5887,
            "packing_fill": 0.951,
        },
        "engine": {"engine": "in_process", "vllm_version": "0.29.0", "dtype": "float32"},
        "seconds": {"plan": 0.5, "generate": 91.0, "train": 58.2, "total": 149.7},
    }
    return report | changed


def make_metrics() -> str:
    lines = [
        {
            "step": step,
            "num_steps": 20,
            "epoch": 0,
            "loss": 2.0 / step,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "loss_tokens": 100 * step,
            "tokens_per_s": 20000.0,
            "loss_tokens_per_s": 15000.0,
            "seconds": 0.5,
            "data_wait_s": 0.001,
            "checkpoint_blocked_s": 0.01,
            "peak_memory_mib": 500.0,
            "time": 1_700_000_000.0 + step,
            "evaluation_loss": 0.5 if step == 20 else None,
        }
        for step in (10, 20)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


class Page(HTMLParser):
    """Collects what a page shows and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.shown, self.loaded, self.tags = "", list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href") and tag != "use"]

    def handle_data(self, data: str) -> None:
        self.shown += data


@pytest.fixture(scope="module")
def text() -> str:
    return render_page(make_report(), make_metrics(), LENGTHS)


def test_page_tells_the_reports_numbers(text: str) -> None:
    page = Page(text)
    for number in ("98.2", "96.1", "97.9", "5,887", "110", "179,508", "381,229", "0.29.0"):
        assert number in page.shown
    assert page.tags.count("svg") >= 6
    assert "<svg" not in page.shown


def test_page_loads_nothing_from_outside(text: str) -> None:
    page = Page(text)
    assert "script" not in page.tags
    assert not [address for address in page.loaded if not address.startswith("#")]


def test_page_of_a_run_without_evaluation_says_so() -> None:
    report = make_report(accuracy=None, gap_closed=None, evaluation_problems=None, engine=None)
    assert "not measured" in Page(render_page(report, make_metrics(), LENGTHS)).shown.lower()


def test_page_escapes_names() -> None:
    name = "<script>alert(1)</script> a & b"
    page = Page(render_page(make_report(name=name), make_metrics(), LENGTHS))
    assert "script" not in page.tags
    assert name in page.shown


def test_page_is_the_same_for_the_same_report(text: str) -> None:
    assert render_page(make_report(), make_metrics(), LENGTHS) == text
