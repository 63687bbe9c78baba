"""Draws the gain of each switch of the ablation."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import LogLocator

from benchmarks.charts.bars import (
    BARS_FRACTION,
    LABEL_PT,
    draw_bar,
    draw_connector,
    draw_label,
    new_bar_chart,
    use_log_x,
)
from benchmarks.measure.cells import accuracy, count
from benchmarks.publish.records import Record, newest_of
from pipeline.plotting import style

_TITLE = "From the plain recipe to the full one"
_ACCURACY_PX, _MARGIN_PX = 210, 40  # right of the bars, with and without a column of accuracies


def draw_waterfall(folder: str, records: Sequence[Record], path: Path) -> None:
    """Draw the gain of each switch, added to those before.

    On the logarithmic axis equal lengths are equal factors.
    """
    steps = cumulative_steps(folder, records)
    rates = [record.rate or 0.0 for record in steps]
    subtitle = _subtitle(steps)
    right_px = _ACCURACY_PX if _has_accuracies(steps) else _MARGIN_PX
    with style.drawing([subtitle]):
        names = [record.variant for record in steps]
        figure, axes = new_bar_chart(names, 230, _TITLE, subtitle, right_px)
        use_log_x(axes)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        left = min(rates) / 1.6
        axes.set_xlim(left, left * (max(rates) / left) ** (1 / BARS_FRACTION))
        for row, (before, rate) in enumerate(zip([left, *rates], rates, strict=False)):
            if row == 0:
                draw_bar(axes, row, before, rate, style.MUTED)
                draw_label(axes, row, rate * 1.02, count(rate))
            else:
                draw_bar(axes, row, before, rate, style.BLUE if rate >= before else style.VERMILLION)
                draw_connector(axes, row, before)
                draw_label(axes, row, max(rate, before) * 1.02, f"{count(rate)}   × {rate / before:.2f}")
        for row, record in enumerate(steps):
            axes.text(
                1.03,
                row,
                accuracy(record.accuracy, record.accuracy_std),
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=LABEL_PT,
                color=style.MUTED,
            )
        style.save_png(figure, path)


def cumulative_steps(folder: str, records: Sequence[Record]) -> list[Record]:
    """Return the cumulative series of the newest ablation."""
    steps = [
        record
        for record in newest_of("ablation", folder, records)
        if record.variant == "plain" or record.variant.startswith("+ ")
    ]

    def series(record: Record) -> tuple[object, ...]:
        # the network by its name: the rest of `model` is a switch
        return (record.network, record.dataset, record.image_size, record.batch_size, record.world_size)

    return [record for record in steps if series(record) == series(steps[-1])]


def _has_accuracies(steps: Sequence[Record]) -> bool:
    return any(record.accuracy is not None for record in steps)


def _subtitle(steps: Sequence[Record]) -> str:
    last = steps[-1]
    text = f"{last.gpu or 'CPU'}, {last.network}, batch {last.batch_size}, loader and step together"
    if last.epochs and _has_accuracies(steps):
        text += f"; right: test accuracy after {last.epochs:g} epochs (n = {last.accuracy_n})"
    return text
