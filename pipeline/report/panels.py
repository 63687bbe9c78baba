"""Chooses the charts of the page and of `curves.png`: for one run, or for several with a line each."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.report.charts import Axis, Chart, lay_out
from pipeline.report.run_record import Metrics
from pipeline.report.series import (
    Rates,
    Records,
    Series,
    grouped,
    letter,
    number,
    percent,
    power_of_two,
    series_of,
)

_NUM_COLORS = 6
_ACCURACY = Axis(high=1.0, format=percent, tick_format=lambda fraction: f"{100 * fraction:g} %")
_ERROR = Axis("log10", format=percent, tick_format=_ACCURACY.tick_format)
_FAR_APART = 100  # the largest loss is so many times the smallest: a linear axis would flatten one line


def color(position: int) -> str:
    """Return the colour of a run among several, a class of the style sheet."""
    return f"c{position % _NUM_COLORS + 1}"


def charts_of_one(metrics: Metrics, rates: Rates | None = None) -> list[Chart]:
    """Lay out the charts of one run. A star marks the best accuracy on the set that selects the best step.

    Args:
        metrics: of the run.
        rates: its learning rates, from `planned_rates`; None: those that were recorded.
    """
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
        *_error_chart("Error", errors),
        *_step_charts([("", "c1", metrics.train, rates)]),
    ]


def charts_of_many(runs: Sequence[Metrics], rates: Sequence[Rates | None]) -> list[Chart]:
    """Lay out the charts of several runs, with a line for each run; the arguments as of `charts_of_one`."""

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
        *_error_chart("Test error", [_error(line) for line in accuracies]),
        *_step_charts([(letter(i), color(i), runs[i].train, rates[i]) for i in range(len(runs))]),
    ]


def _error_chart(title: str, errors: Sequence[Series]) -> list[Chart]:
    """Lay out the errors, unless no line has a second point: single dots would repeat the accuracies."""
    return [lay_out(title, errors, _ERROR)] if any(len(line.values) > 1 for line in errors) else []


def _step_charts(sources: Sequence[tuple[str, str, Records, Rates | None]]) -> list[Chart]:
    """Lay out learning rate, images per second and, for runs in fp16, loss scale."""
    speeds, scales = (
        [series_of(name, color_class, records, key) for name, color_class, records, _ in sources]
        for key in ("images_per_sec", "loss_scale")
    )
    rates = [
        series_of(name, color_class, records, "lr")
        if planned is None
        else Series(name, color_class, *planned, last=float(planned[1][-1]))
        for name, color_class, records, planned in sources
    ]
    charts = [
        lay_out("Learning rate", rates, Axis(low=0.0, format=lambda rate: number(_rounded(rate)))),
        lay_out(
            "Images per second",
            speeds,
            Axis(low=0.0, format=lambda speed: grouped(_rounded(speed)), tick_format=grouped),
        ),
    ]
    if drawn := [line for line in scales if (line.values != 1).any()]:  # without a GradScaler the scale is 1
        charts.append(lay_out("Loss scale", drawn, Axis("log2", format=power_of_two)))
    return charts


def _rounded(value: float) -> float:
    """Round a value to three digits."""
    return float(f"{value:.3g}")


def _loss_axis(lines: Sequence[Series]) -> Axis:
    """Return a logarithmic axis where a linear one would flatten a line: losses far apart, or one peak."""
    values = np.concatenate([line.values for line in lines]) if lines else np.empty(0)
    far = len(values) > 0 and values.min() > 0 and values.max() > _FAR_APART * values.min()
    peaked = len(values) > 0 and values.min() > 0 and values.max() > 20 * np.median(values)
    return Axis("log10") if far or peaked else Axis(low=0.0)


def _error(accuracy: Series) -> Series:
    return replace(accuracy, values=1 - accuracy.values, last=1 - accuracy.last, starred=False)
