"""``report.html``: one file without scripts or anything to load that tells a run to someone who has not seen it.

Called by `cluster.report`, which imports it late: matplotlib and jinja2 are needed by nothing else. The same inputs
give the same bytes. Plots are drawn in stand-in colours and leave here with CSS variables instead, so that the page's
style sheet decides what they look like in light, in dark and on paper.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from cluster.cost_words import cost_lines
from cluster.run_estimate import estimate_lines
from configs.table import RowStatus
from training.job import StepMetrics

TEMPLATE = Path(__file__).with_name("report_page.html.jinja")
NOT_MEASURED = "not measured"
STUDENTS = {
    "teacher": "teacher",
    "student_before": "student before",
    "student_after": "student after",
    "student_control": "control student",
}
LEDGER_PARTS = (*(status.value for status in RowStatus), "pending")

# Every colour of a plot is one of these names; the style sheet gives each its value as --name.
COLOUR_NAMES = ("ink", "muted", "grid", "rate", "phase", *STUDENTS, *LEDGER_PARTS)
COLOURS = {name: f"#0f0e{index:02x}" for index, name in enumerate(COLOUR_NAMES)}

POINTS_PER_INCH = 72  # of SVG; a plot as wide as its card is drawn one unit to the CSS pixel
MAX_CURVE_POINTS = 500  # about one for each pixel of a plot's width
MAX_BINS = 40

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stillhouse",  # names of clip paths are random without it
    "text.parse_math": False,
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.facecolor": "none",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


def render_page(report: dict[str, Any], metrics_jsonl: str, lengths: dict[str, list[int]]) -> str:
    """Return the page as one HTML document.

    Args:
        report: what `cluster.report.build_report` returns.
        metrics_jsonl: the student's ``metrics.jsonl``; may be empty.
        lengths: completion lengths (tokens) by row status.
    """
    metrics = [StepMetrics(**json.loads(line)) for line in metrics_jsonl.splitlines() if line.strip()]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": show_count, "percent": show_percent, "loss": show_loss, "duration": show_duration}
    with mpl.rc_context(RC):
        plots = {
            "accuracy": plot_accuracy(report["accuracy"]),
            "ledger": plot_ledger(report["ledger"]),
            "loss": plot_loss(metrics),
            "throughput": plot_throughput(metrics),
            "lengths": plot_lengths(lengths),
            "seconds": plot_seconds(report["seconds"]),
        }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        plots=plots,
        students=STUDENTS,
        ledger_parts=LEDGER_PARTS,
        engine=[(key, show_value(value)) for key, value in (report["engine"] or {}).items()],
        numbers=number_tables(report),
        cost=cost_lines(report["cost"]) if report.get("cost") else [],
        assumptions=report["cost"]["assumptions"] if report.get("cost") else [],
        estimate=estimate_lines(report["estimate"]) if report.get("estimate") else [],
    )


def show_count(value: int) -> str:
    return f"{value:,}"


def show_percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.1%}"


def show_loss(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4f}"


def show_duration(seconds: float) -> str:
    """Seconds in the units that people use for so many.

    >>> show_duration(7.25), show_duration(187.0), show_duration(7500.0)
    ('7.2 s', '3 min 7 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def show_value(value: Any) -> str:
    """A number of report.json with all its digits, or a setting in words."""
    match value:
        case None:
            return NOT_MEASURED
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.1f}"
        case _:
            return str(value)


def number_tables(report: dict[str, Any]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Every number of the report by section: (section, unit, rows of key and value), under report.json's own names."""
    evaluation = {"gap_closed": report["gap_closed"], "evaluation_problems": report["evaluation_problems"]}
    sections = (
        ("ledger", "rows", report["ledger"]),
        ("accuracy", "share of the problems solved", report["accuracy"] or dict.fromkeys(STUDENTS)),
        ("evaluation", "share of the gap; problems", evaluation),
        ("tokens", "tokens", report["tokens"]),
        ("training", "losses in nats per token", report["training"]),
        ("seconds", "s", report["seconds"]),
        *([("overlap", "s", report["overlap"])] if report.get("overlap") else []),
    )
    return [(name, unit, [(key, show_value(value)) for key, value in part.items()]) for name, unit, part in sections]


def plot_accuracy(accuracy: dict[str, float | None] | None) -> Markup | None:
    """Bars of who solves how much, with the teacher's accuracy as a line to reach; None when nothing was measured."""
    measured = {who: value for who in STUDENTS if (value := (accuracy or {}).get(who)) is not None}
    if not measured:
        return None
    shown = [f"{value:.1%}" for value in measured.values()]
    labels = [STUDENTS[who] for who in measured]
    figure, axes = _bars(labels, list(measured.values()), shown, list(measured), width=540, limit=1.0)
    if "teacher" in measured:
        axes.axvline(measured["teacher"], color=COLOURS["teacher"], linewidth=1.2, linestyle=(0, (3, 3)), zorder=0.5)
    told = ", ".join(f"{label} {value}" for label, value in zip(labels, shown, strict=True))
    return _svg(figure, "accuracy", f"Bars: problems solved. {told}.")


def plot_seconds(seconds: dict[str, float]) -> Markup:
    """Bars of how long each phase took, in the order of the run."""
    phases = {name.replace("_", " "): value for name, value in seconds.items() if name != "total"}
    shown = [show_duration(value) for value in phases.values()]
    figure, _ = _bars(list(phases), list(phases.values()), shown, ["phase"] * len(phases), width=480)
    told = ", ".join(f"{label} {value}" for label, value in zip(phases, shown, strict=True))
    return _svg(figure, "seconds", f"Bars: time by phase. {told}.")


def plot_ledger(ledger: dict[str, int]) -> Markup:
    """One bar of all planned rows, split by what became of them; stretched to any width by the page."""
    figure = Figure(figsize=(1000 / POINTS_PER_INCH, 32 / POINTS_PER_INCH))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, max(ledger["planned"], 1))
    left = 0
    for part in LEDGER_PARTS:
        if ledger[part]:
            axes.barh(0, ledger[part], left=left, height=1, color=COLOURS[part])
        left += ledger[part]
    axes.set_ylim(-0.5, 0.5)
    told = ", ".join(f"{ledger[part]:,} {part}" for part in LEDGER_PARTS)
    svg = _svg(figure, "ledger", f"Stacked bar of {ledger['planned']:,} planned rows: {told}.")
    return Markup(str(svg).replace("<svg ", '<svg preserveAspectRatio="none" ', 1))  # Markup.replace would escape


def plot_loss(metrics: Sequence[StepMetrics]) -> Markup | None:
    """Training loss and the held-back rows' loss over steps, above the learning rate; None without metrics."""
    if not metrics:
        return None
    figure = _figure(480, 330)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    steps = [each.step for each in metrics]
    _curve(above, steps, [each.loss for each in metrics], "student_after", "training")
    measured = [(each.step, each.evaluation_loss) for each in metrics if each.evaluation_loss is not None]
    told = f"Training loss went from {metrics[0].loss:.3f} to {metrics[-1].loss:.3f} in {metrics[-1].step:,} steps."
    if measured:
        above.plot(
            *zip(*measured, strict=True), "o", ms=6, color=COLOURS["teacher"], mec="none", label="held-back rows"
        )
        told += f" The held-back rows' loss was {measured[-1][1]:.3f} at the end."
    _style(above, "loss (nats per token)")
    above.legend(loc="upper right")
    _curve(below, steps, [each.learning_rate for each in metrics], "rate")
    _style(below, "learning rate", number="{:g}")
    below.yaxis.set_major_locator(MaxNLocator(2))
    below.set_xlabel("optimiser step")
    figure.align_ylabels()
    return _svg(figure, "loss", told)


def plot_throughput(metrics: Sequence[StepMetrics]) -> Markup | None:
    """Tokens of rows, and tokens that bear a loss, per second over steps; None without metrics."""
    if not metrics:
        return None
    figure = _figure(480, 330)
    axes = figure.subplots()
    steps = [each.step for each in metrics]
    _curve(axes, steps, [each.tokens_per_s for each in metrics], "student_after", "prompt and completion")
    _curve(axes, steps, [each.loss_tokens_per_s for each in metrics], "rate", "of which bear a loss")
    _style(axes, "tokens per second", number="{:,.0f}")
    axes.set_xlabel("optimiser step")
    axes.legend(loc="lower right")
    median = float(np.median([each.tokens_per_s for each in metrics]))
    return _svg(figure, "throughput", f"Training speed over steps, with a median of {median:,.0f} tokens per second.")


def plot_lengths(lengths: dict[str, list[int]]) -> Markup | None:
    """Stacked histogram of completion lengths by status; None without rows."""
    values = {status.value: np.asarray(lengths.get(status.value, ()), dtype=np.int64) for status in RowStatus}
    values = {status: each for status, each in values.items() if each.size}
    if not values:
        return None
    edges = bin_edges(
        min(int(each.min()) for each in values.values()), max(int(each.max()) for each in values.values())
    )
    figure = _figure(480, 300)
    axes = figure.subplots()
    below = np.zeros(len(edges) - 1)
    for status, each in values.items():
        rows, _ = np.histogram(each, edges)
        filled = rows > 0  # an empty bar would be drawn as well
        axes.bar(
            (edges[:-1] + edges[1:])[filled] / 2,
            rows[filled],
            width=0.92 * (edges[1] - edges[0]),
            bottom=below[filled],
            color=COLOURS[status],
            label=status,
        )
        below += rows
    _style(axes, "rows", number="{:,.0f}")
    axes.set_xlabel("completion length (tokens)")
    axes.set_ylim(0, 1.2 * below.max())  # room for the legend
    axes.legend(loc="upper left", ncols=len(values), handlelength=0.8, handleheight=0.8, columnspacing=1.4)
    told = "; ".join(f"{status}: {each.size:,} rows, median {np.median(each):,.0f}" for status, each in values.items())
    return _svg(figure, "lengths", f"Histogram of completion lengths in tokens. {told}.")


def bin_edges(shortest: int, longest: int) -> NDArray[np.float64]:
    """Edges between whole numbers of at most MAX_BINS bins, each as many lengths wide as the others."""
    width = -(-(longest - shortest + 1) // MAX_BINS)
    num_bins = -(-(longest - shortest + 1) // width)
    return shortest - 0.5 + width * np.arange(num_bins + 1, dtype=np.float64)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), layout="constrained")


def _bars(
    labels: Sequence[str],
    values: Sequence[float],
    shown: Sequence[str],
    colours: Sequence[str],
    *,
    width: float,
    limit: float | None = None,
) -> tuple[Figure, Axes]:
    """Horizontal bars from top to bottom, each with its label before it and its value behind it."""
    figure = _figure(width, 16 + 36 * len(values))
    axes = figure.subplots()
    bars = axes.barh(range(len(values)), values, height=0.62, color=[COLOURS[name] for name in colours])
    axes.bar_label(bars, shown, padding=6, color=COLOURS["ink"])
    axes.set_xlim(0, 1.16 * (limit or max(values, default=0) or 1))  # the longest bar's value needs room
    axes.set_yticks(range(len(values)), labels, color=COLOURS["ink"])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return figure, axes


def _curve(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str, label: str = "") -> None:
    """Draw a line; of a long run the means of equal parts, as more points would not be seen."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) > MAX_CURVE_POINTS:
        x, y = (np.array([part.mean() for part in np.array_split(each, MAX_CURVE_POINTS)]) for each in (x, y))
    axes.plot(x, y, color=COLOURS[colour], linewidth=1.8, label=label, marker="o" if len(x) == 1 else "")


def _style(axes: Axes, y_label: str, number: str = "{:,g}") -> None:
    """The look that plots over a number share: a quiet grid, y from zero, whole numbers along x."""
    axes.grid(axis="y")
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number.format(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an ``<svg>`` for the inside of a page: described, in the page's font and colours, with own ids."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", body)
    for each in sorted(referred):
        body = re.sub(rf'(id="|href="#|url\(#){re.escape(each)}(?=["\)])', rf"\g<1>{name}-{each}", body)
    # Both forms that matplotlib writes: the shorthand, and the family alone.
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for colour, stand_in in COLOURS.items():
        body = body.replace(stand_in, f"var(--{colour})")
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    opening = Markup('<svg class="plot {}" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return opening.format(name, f"{width:g}", f"{height:g}", description) + Markup(re.sub(r"\n\s*", "\n", body))
