"""Chooses the charts of the page and of `curves.png`: for one run, or for several with a line each."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.report.charts import Axis, Chart, lay_out
from pipeline.report.run_record import Metrics
from pipeline.report.series import Records, Series, number, percent, power_of_two, series_of

_NUM_COLORS = 6
_ACCURACY = Axis(high=1.0, format=percent, tick_format=lambda fraction: f"{100 * fraction:g} %")
_ERROR = Axis("log10", format=percent, tick_format=_ACCURACY.tick_format)
_NO_SCALE = ("1 throughout: only fp16 needs one; bf16", "and fp32 have the range for small gradients.")


def letter(position: int) -> str:
    """Return the name of a run among several: A, B, …"""
    return chr(ord("A") + position) if position < 26 else str(position + 1)


def color(position: int) -> str:
    """Return the colour of a run among several, a class of the style sheet."""
    return f"c{position % _NUM_COLORS + 1}"


def charts_of_one(metrics: Metrics) -> list[Chart]:
    """Lay out the charts of one run. A star marks the best accuracy on the set that selects the best step."""
    test, holdout = metrics.evals["test"], metrics.evals["holdout"]
    losses, accuracies = [], []
    for name, color_class, records, prefix in (
        ("train", "c1", metrics.train, ""),
        ("holdout", "c3", holdout, ""),
        ("test", "c2", test, ""),
        ("ema", "c4", test, "ema_"),
    ):
        losses.append(series_of(name, color_class, records, f"{prefix}loss"))
        accuracy = series_of(name, color_class, records, f"{prefix}accuracy")
        accuracies.append(replace(accuracy, starred=name == metrics.selected_on))
    errors = [_error(line) for line in accuracies if line.name != "train"]
    notes = [
        f"★ best {line.name} {percent(line.values.max())}"
        for line in accuracies
        if line.starred and len(line.values)
    ]
    return [
        lay_out("Loss", losses, _loss_axis(losses)),
        lay_out("Accuracy", accuracies, _ACCURACY, "".join(notes)),
        lay_out("Error", errors, _ERROR, "logarithmic"),
        *_step_charts([("", "c1", metrics.train)]),
    ]


def charts_of_many(runs: Sequence[Metrics]) -> list[Chart]:
    """Lay out the charts of several runs, with a line for each run."""

    def lines(records: Callable[[Metrics], Records], key: str) -> list[Series]:
        return [series_of(letter(i), color(i), records(metrics), key) for i, metrics in enumerate(runs)]

    def test(metrics: Metrics) -> Records:
        return metrics.evals["test"]

    train_losses, test_losses = lines(lambda metrics: metrics.train, "loss"), lines(test, "loss")
    accuracies = lines(test, "accuracy")
    return [
        lay_out("Training loss", train_losses, _loss_axis(train_losses)),
        lay_out("Test loss", test_losses, _loss_axis(test_losses)),
        lay_out("Test accuracy", accuracies, _ACCURACY),
        lay_out("Test error", [_error(line) for line in accuracies], _ERROR, "logarithmic"),
        *_step_charts([(letter(i), color(i), metrics.train) for i, metrics in enumerate(runs)]),
    ]


def _step_charts(sources: Sequence[tuple[str, str, Records]]) -> list[Chart]:
    """Lay out learning rate, images per second and, where it was recorded, loss scale."""
    rates, speeds, scales = (
        [series_of(*source, key) for source in sources] for key in ("lr", "images_per_sec", "loss_scale")
    )
    charts = [
        lay_out("Learning rate", rates, Axis(low=0.0, format="{:.3g}".format)),
        lay_out("Images per second", speeds, Axis(low=0.0, format=_rate)),
    ]
    if drawn := [line for line in scales if (line.values != 1).any()]:
        charts.append(lay_out("Loss scale", drawn, Axis("log2", format=power_of_two)))
    elif any(len(line.values) for line in scales):  # without a GradScaler the scale is 1
        words = f"Loss scale: {' '.join(_NO_SCALE)}"
        charts.append(Chart("Loss scale", "", words, empty=_NO_SCALE, height=60))
    return charts


def _rate(speed: float) -> str:
    return number(float(f"{speed:.3g}"))


def _loss_axis(lines: Sequence[Series]) -> Axis:
    """Return a logarithmic axis where one peak would flatten all the rest."""
    values = np.concatenate([line.values for line in lines]) if lines else np.empty(0)
    peaked = len(values) > 0 and values.min() > 0 and values.max() > 20 * np.median(values)
    return Axis("log10" if peaked else "linear", low=None if peaked else 0.0)


def _error(accuracy: Series) -> Series:
    return replace(accuracy, values=1 - accuracy.values, last=1 - accuracy.last, starred=False)
