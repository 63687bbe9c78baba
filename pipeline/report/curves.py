"""`curves.png`: loss, accuracy, learning rate, loss scale and speed of one run, drawn from its `metrics.jsonl`."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.errors import UserError
from pipeline.plotting import style

_WIDTH_PX, _HEIGHT_PX = 1400, 900
_MARGIN_PX, _RIGHT_PX, _GAP_PX = (
    84,
    48,
    104,
)  # left and right of all, between panels: with room for tick labels
_LABEL_ROOM_PX, _LABEL_PITCH_PX = (
    128,
    18,
)  # of the labels at the ends of lines: width kept free, least distance
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Record = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One line of a panel.

    Attributes:
        epochs, values: (N,) float64, finite, in the order of the run.
        last: the last value measured, which may not be finite.
    """

    name: str
    color: str
    epochs: np.ndarray
    values: np.ndarray
    last: float


def draw_curves(run_folder: Path) -> Path:
    """Draw the metrics of a run over its epochs.

    Values that are missing or not finite are left out; a panel without any says so.

    Args:
        run_folder: the folder that holds `metrics.jsonl`.

    Returns:
        The path of `curves.png` in that folder, 1400 x 900 pixels, replaced if it was there.

    Raises:
        UserError: `metrics.jsonl` is missing, or a line other than an unfinished last one is no JSON object.
    """
    records = read_metrics(run_folder / "metrics.jsonl")
    train = [r for r in records if r.get("kind") == "train"]
    evals = {
        split: [r for r in records if r.get("kind") == "eval" and r.get("split") == split]
        for split in ("holdout", "test")
    }
    best_on = "holdout" if evals["holdout"] else "test"
    best = series_of(f"best {best_on}", style.INK, evals[best_on], "accuracy")
    scale = series_of("", style.INK, train, "loss_scale")
    speed = series_of("", style.INK, train, "images_per_sec")
    num_epochs = max((_finite(r.get("epoch")) or 0.0 for r in records), default=0.0)
    title = style.one_line(run_folder.resolve().name)

    with style.drawing([title]):
        figure = style.new_figure(_WIDTH_PX, _HEIGHT_PX)
        _header(figure, title, _summary(evals["test"], best, best_on))
        loss, accuracy = _row(figure, 2, 160, 320, num_epochs, end_px=_LABEL_ROOM_PX)
        sources = (
            ("train", style.BLUE, train),
            ("holdout", style.GREEN, evals["holdout"]),
            ("test", style.VERMILLION, evals["test"]),
        )
        losses, accuracies = ([series_of(*source, key) for source in sources] for key in ("loss", "accuracy"))
        _panel(loss, "Loss", losses)
        _fit_loss(loss, losses)
        _label_ends(loss, losses, "{:.3f}".format)
        _panel(accuracy, "Accuracy", accuracies)
        _fit_accuracy(accuracy, best)
        _label_ends(accuracy, accuracies, percent)

        with_scale = bool((scale.values != 1).any())  # without a GradScaler the scale is 1
        lower = _row(figure, 3 if with_scale else 2, 590, 230, num_epochs)
        _panel(lower[0], "Learning rate", [series_of("", style.INK, train, "lr")])
        lower[0].set_ylim(bottom=0)
        if with_scale:
            _panel(lower[1], "Loss scale", [scale], f"last {power_of_two(scale.values[-1])}")
            lower[1].set_yscale("log", base=2)
            lower[1].set_ylim(scale.values.min() / 4, scale.values.max() * 4)
            lower[1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_two(value)))
        _panel(
            lower[-1],
            "Images per second",
            [speed],
            f"last {speed.values[-1]:,.0f}" if len(speed.values) else "",
        )
        lower[-1].set_ylim(bottom=0)
        path = run_folder / "curves.png"
        style.save_png(figure, path)
    return path


def read_metrics(path: Path) -> list[Record]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of a run that has logged something") from None
    records = []
    for line_number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            if line_number == len(lines):
                break  # a run that was killed while it wrote
            raise UserError(f"{path}: line {line_number}: {error}; restore or remove that line") from None
        records.append(record)
    return records


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def series_of(name: str, color: str, records: Sequence[Record], key: str) -> Series:
    # null in training is no NaN, which ends the run: nothing was measured, as where all updates of a window were skipped
    measured = [r for r in records if key in r and not (r[key] is None and r.get("kind") == "train")]
    points = [(_finite(r.get("epoch")), _finite(r[key])) for r in measured]
    kept = np.array([p for p in points if None not in p], dtype=np.float64).reshape(-1, 2)
    last = points[-1][1] if points else None
    return Series(name, color, kept[:, 0], kept[:, 1], math.nan if last is None else last)


def _summary(test: Sequence[Record], best: Series, best_on: str) -> str:
    parts = []
    if test:
        last = test[-1]
        counts = f" ({last['correct']:,} of {last['seen']:,})" if "correct" in last and "seen" in last else ""
        accuracy = _finite(last.get("accuracy"))
        parts.append(
            f"test accuracy {'unknown' if accuracy is None else percent(accuracy, 2)}{counts} at the last step"
        )
    if len(best.values):
        at = int(best.values.argmax())
        parts.append(
            f"best {percent(best.values[at], 2)} at epoch {number(best.epochs[at])}, selected on the {best_on} set"
        )
    return "   ·   ".join(parts)


def _header(figure: Figure, title: str, summary: str) -> None:
    left, room_px = _MARGIN_PX / _WIDTH_PX, _WIDTH_PX - _MARGIN_PX - _RIGHT_PX
    style.shorten(
        figure.text(left, 1 - 58 / _HEIGHT_PX, title, fontsize=26 * style.PX, fontweight="bold"), room_px
    )
    style.shorten(
        figure.text(left, 1 - 90 / _HEIGHT_PX, summary, fontsize=15 * style.PX, color=style.MUTED), room_px
    )


def _row(
    figure: Figure, count: int, top_px: int, height_px: int, num_epochs: float, end_px: int = 0
) -> list[Axes]:
    """`count` equal panels side by side, each with `end_px` kept free behind it."""
    pitch_px = (_WIDTH_PX - _MARGIN_PX - _RIGHT_PX + _GAP_PX) / count
    width_px = pitch_px - _GAP_PX - end_px
    row = []
    for i in range(count):
        corner = ((_MARGIN_PX + i * pitch_px) / _WIDTH_PX, 1 - (top_px + height_px) / _HEIGHT_PX)
        axes = figure.add_axes((*corner, width_px / _WIDTH_PX, height_px / _HEIGHT_PX))
        axes.set_xlim(0, num_epochs or 1)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=num_epochs >= 5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        row.append(axes)
    return row


def _panel(axes: Axes, heading: str, lines: Sequence[Series], note: str = "") -> None:
    axes.set_title(heading)
    axes.set_title(note, loc="right", fontsize=13 * style.PX, fontweight="normal", color=style.MUTED)
    for line in lines:
        few = len(line.values) == 1 or (line.name not in ("", "train") and len(line.values) <= 40)
        axes.plot(
            line.epochs,
            line.values,
            color=line.color,
            linewidth=1.8,
            marker="o" if few else "",
            markersize=4.5,
            clip_on=False,
        )
    if not any(len(line.values) for line in lines):
        axes.text(
            0.5,
            0.5,
            "nothing recorded",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=13 * style.PX,
            color=style.MUTED,
        )
        axes.yaxis.set_major_locator(NullLocator())


def _fit_loss(axes: Axes, lines: Sequence[Series]) -> None:
    """A logarithmic axis where one excursion would flatten all the rest."""
    values = np.concatenate([line.values for line in lines])
    if len(values) and values.min() > 0 and values.max() > 20 * np.median(values):
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _fit_accuracy(axes: Axes, best: Series) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    if len(best.values):
        at = int(best.values.argmax())
        axes.plot(
            best.epochs[at],
            best.values[at],
            marker="*",
            markersize=13,
            color=best.color,
            markeredgecolor=style.PAPER,
            clip_on=False,
            zorder=5,
        )
        axes.set_title(
            f"★ {best.name} {percent(best.values[at])}",
            loc="right",
            fontsize=13 * style.PX,
            fontweight="normal",
            color=best.color,
        )


def _label_ends(axes: Axes, lines: Sequence[Series], form: Callable[[float], str]) -> None:
    """The name and last value of each line beside its end, moved apart where labels would overlap."""
    axes.autoscale_view()  # matplotlib puts it off, and the places below depend on it
    lines = sorted((line for line in lines if len(line.values)), key=lambda line: line.values[-1])
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [float(to_axes.transform((0, line.values[-1]))[1]) for line in lines]
    pitch = _LABEL_PITCH_PX / axes.get_window_extent().height
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + pitch)
    for i, ceiling in zip(reversed(range(len(places))), np.arange(1, -1, -pitch), strict=False):
        places[i] = min(places[i], float(ceiling))
    for line, place in zip(lines, places, strict=True):
        words = f"{line.name} {form(line.last) if math.isfinite(line.last) else 'NaN'}"
        axes.text(
            1.025,
            place,
            words,
            transform=axes.transAxes,
            va="center",
            fontsize=13 * style.PX,
            fontweight="bold",
            color=line.color,
        )


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def power_of_two(value: float) -> str:
    exponent = math.log2(value)
    return "2" + str(round(exponent)).translate(_SUPERSCRIPTS) if exponent.is_integer() else number(value)
