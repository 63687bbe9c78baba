"""Paints `curves.png`: the charts of one run, as its page shows them."""

from pathlib import Path

from matplotlib.axes import Axes

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.plotting import style
from pipeline.plotting.page import Page
from pipeline.report.charts import Chart
from pipeline.report.figures import counts_of
from pipeline.report.panels import charts_of_one
from pipeline.report.run_record import Metrics, read_metrics
from pipeline.report.series import number, percent, series_of
from pipeline.run.folder import RunFolder

_WIDTH_PX, _HEIGHT_PX = 1400, 900
_MARGIN_PX, _TOP_PX = 32, 172
_COLUMNS, _COLUMN_PX, _ROW_PX = 3, 456, 384
_ZOOM = 1.2  # pixels of the picture for one pixel of a chart
_COLORS = {"c1": style.BLUE, "c2": style.VERMILLION, "c3": style.GREEN, "c4": style.PURPLE}


def draw_curves(run_folder: Path) -> Path:
    """Draw the metrics of a run over its epochs.

    Values that are missing or not finite are left out; a chart without any value says so.

    Args:
        run_folder: the folder that holds `metrics.jsonl`.

    Returns:
        The path of `curves.png` in that folder, 1400 x 900 pixels, replaced if it was there.

    Raises:
        UserError: `metrics.jsonl` is missing, or a line other than an unfinished last one is not a JSON
            object.
    """
    run = RunFolder(run_folder)
    metrics = read_metrics(run.metrics)
    title = style.one_line(run_folder.resolve().name)
    with style.drawing([title]):
        page = Page(_WIDTH_PX, _HEIGHT_PX)
        page.heading(_MARGIN_PX, title, _summary(metrics))
        for i, chart in enumerate(charts_of_one(metrics, metrics.rates_under(_config_of(run)))):
            row, column = divmod(i, _COLUMNS)
            x, y = _MARGIN_PX + column * _COLUMN_PX, _TOP_PX + row * _ROW_PX
            _paint(page.axes(x, y, _ZOOM * chart.width, _ZOOM * chart.height), chart)
        style.save_png(page.figure, run.curves)
    return run.curves


def _config_of(run: RunFolder) -> Config | None:
    try:
        return run.read_config()
    except UserError:  # the curves of a run of another version are still those of its records
        return None


def _summary(metrics: Metrics) -> str:
    parts = []
    if last := metrics.last_test:
        parts.append(f"test accuracy {percent(last.accuracy, 2)} ({counts_of(last)}) at the last step")
    best = series_of("", "", metrics.evals[metrics.selected_on], "accuracy")
    if len(best.values):
        at = int(best.values.argmax())
        value, epoch = percent(best.values[at], 2), number(best.epochs[at])
        parts.append(f"best {value} at epoch {epoch}, selected on the {metrics.selected_on} set")
    return "   ·   ".join(parts)


def _paint(axes: Axes, chart: Chart) -> None:
    """Paint a chart as the template of the page does in SVG."""
    axes.set_axis_off()
    axes.set(xlim=(0, chart.width), ylim=(chart.height, 0))

    def write(x: float, y: float, text: str, size_px: float = 11, **options: object) -> None:
        size = _ZOOM * size_px * style.PX
        axes.text(x, y, text, fontsize=size, **{"va": "center", "color": style.MUTED, **options})

    write(0, -12, chart.title, 14, fontweight="bold", color=style.INK)
    write(chart.width, -12, chart.note, 12, ha="right")
    for y, label in chart.y_ticks:
        axes.plot([chart.left, chart.right], [y, y], color=style.GRID, linewidth=0.8)
        write(chart.left - 6, y, label, ha="right")
    for x, label in chart.x_ticks:
        write(x, chart.bottom + 13, label, ha="center")
    if chart.empty:
        write((chart.left + chart.right) / 2, chart.height / 2, "\n".join(chart.empty), ha="center")
    else:
        write(chart.right, chart.bottom + 28, "epoch", ha="right")
    for line in chart.lines:
        color = _COLORS[line.color]
        axes.plot(*zip(*line.points, strict=True), color=color, linewidth=1.6)
        axes.plot([x for x, *_ in line.dots], [y for _, y, _ in line.dots], "o", markersize=4, color=color)
        write(*line.end, color=color, fontweight="bold")
        if line.star is not None:
            edge = {"markeredgecolor": style.PAPER, "zorder": 5}
            axes.plot(*line.star, "*", markersize=12, color=color, **edge)
