"""Draws the curve of a learning-rate range test."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter

from pipeline.plotting import style
from pipeline.training.lr_finder import RangeTest


def draw(found: RangeTest, path: Path, title: str, subtitle: str) -> None:
    """Draw loss over learning rate, 1000 x 600 pixels, with the suggested rate."""
    width, height = 1000, 600
    left, bottom, right, top = 84, 76, 40, 128
    with style.drawing([title, subtitle]):
        figure = style.new_figure(width, height)
        room = width - left - right
        heading = figure.text(
            left / width, 1 - 48 / height, style.one_line(title), fontsize=22 * style.PX, fontweight="bold"
        )
        style.shorten(heading, room)
        note = figure.text(
            left / width, 1 - 78 / height, style.one_line(subtitle), fontsize=14 * style.PX, color=style.MUTED
        )
        style.shorten(note, room)
        axes = figure.add_axes(
            (left / width, bottom / height, room / width, (height - top - bottom) / height)
        )
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        axes.plot(found.rates, found.losses, color=style.BLUE, alpha=0.35, linewidth=1.2)
        axes.plot(found.rates, found.smoothed, color=style.BLUE, linewidth=2.2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(y=0.12)
        for rate, name, color in (
            (found.steepest, "falls fastest", style.GREEN),
            (found.suggested, "suggested maximum", style.VERMILLION),
        ):
            if rate is not None:
                at = float(np.interp(np.log(rate), np.log(found.rates), found.smoothed))
                axes.plot(
                    [rate, rate],
                    [0, 1],
                    transform=axes.get_xaxis_transform(),
                    color=color,
                    linewidth=1.2,
                    linestyle="--",
                )
                axes.plot(
                    rate,
                    at,
                    marker="o",
                    markersize=8,
                    color=color,
                    markeredgecolor=style.PAPER,
                    label=f"{name} {rate:.2g}",
                )
        if found.fell:
            figure.legend(
                *axes.get_legend_handles_labels(),
                loc="upper right",
                bbox_to_anchor=(1 - right / width, 1 - 24 / height),
                frameon=False,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        style.save_png(figure, path)
