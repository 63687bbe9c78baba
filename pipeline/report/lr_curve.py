"""Draws the curve of a learning-rate range test."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from pipeline.plotting import style
from pipeline.plotting.page import Page
from pipeline.report.series import needs_power, number, power_of_ten
from pipeline.training.lr_finder import RangeTest

_WIDTH_PX, _HEIGHT_PX = 1000, 600
_LEFT_PX, _TOP_PX, _RIGHT_PX, _BOTTOM_PX = 84, 128, 40, 76


def draw(result: RangeTest, path: Path, title: str, subtitle: str) -> None:
    """Draw loss over learning rate, 1000 x 600 pixels, with the suggested rate."""
    width, height = _WIDTH_PX - _LEFT_PX - _RIGHT_PX, _HEIGHT_PX - _TOP_PX - _BOTTOM_PX
    with style.drawing([title, subtitle]):
        page = Page(_WIDTH_PX, _HEIGHT_PX)
        page.heading(_LEFT_PX, title, subtitle, _RIGHT_PX)
        axes = page.axes(_LEFT_PX, _TOP_PX, width, height)
        _draw_loss(axes, result)
        _mark(axes, result, result.steepest, "falls fastest", style.GREEN)
        _mark(axes, result, result.suggested, "suggested maximum", style.VERMILLION)
        if result.fell:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        style.save_png(page.figure, path)


def _draw_loss(axes: Axes, result: RangeTest) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.plot(result.rates, result.losses, color=style.BLUE, alpha=0.35, linewidth=1.2)
    axes.plot(result.rates, result.smoothed, color=style.BLUE, linewidth=2.2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    if any(map(needs_power, axes.get_yticks())):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.margins(y=0.12)


def _mark(axes: Axes, result: RangeTest, rate: float | None, name: str, color: str) -> None:
    if rate is None:
        return
    loss = float(np.interp(np.log(rate), np.log(result.rates), result.smoothed))
    axes.axvline(rate, color=color, linewidth=1.2, linestyle="--")
    label = f"{name} {number(float(f'{rate:.2g}'))}"
    axes.plot(rate, loss, "o", markersize=8, color=color, markeredgecolor=style.PAPER, label=label)
