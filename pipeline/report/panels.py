"""Which curves the page shows: of one run, or of several with a line each."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.report.charts import Axis, Chart, draw
from pipeline.report.curves import Record, Series, number, percent, power_of_two, series_of
from pipeline.report.run_record import RunRecord

_NUM_COLORS = 6


def letter(position: int) -> str:
    """What a run among several is called."""
    return chr(ord("A") + position) if position < 26 else str(position + 1)


def color(position: int) -> str:
    """Its colour, a class of the style sheet."""
    return f"c{position % _NUM_COLORS + 1}"


_ACCURACY = Axis(high=1.0, form=percent, tick_form=lambda share: f"{100 * share:g} %")
_ERROR = Axis("log10", form=percent, tick_form=_ACCURACY.tick_form)


def charts_of_one(run: RunRecord) -> list[Chart]:
    test, holdout = run.evals["test"], run.evals["holdout"]
    losses, accuracies = [], []
    for name, color_class, records, prefix in (
        ("train", "c1", run.train, ""),
        ("holdout", "c3", holdout, ""),
        ("test", "c2", test, ""),
        ("ema", "c4", test, "ema_"),
    ):
        losses.append(series_of(name, color_class, records, f"{prefix}loss"))
        accuracies.append(series_of(name, color_class, records, f"{prefix}accuracy"))
    errors = [_error(line) for line in accuracies if line.name != "train"]
    return [
        draw("Loss", losses, _loss_axis(losses)),
        draw("Accuracy", accuracies, _ACCURACY),
        draw("Error", errors, _ERROR, note="logarithmic"),
        *_step_charts([("", "c1", run.train)]),
    ]


def charts_of_many(runs: Sequence[RunRecord]) -> list[Chart]:
    def lines(kind: Callable[[RunRecord], list[Record]], key: str) -> list[Series]:
        return [series_of(letter(i), color(i), kind(run), key) for i, run in enumerate(runs)]

    train, test = lines(lambda run: run.train, "loss"), lines(lambda run: run.evals["test"], "loss")
    accuracy = lines(lambda run: run.evals["test"], "accuracy")
    return [
        draw("Training loss", train, _loss_axis(train)),
        draw("Test loss", test, _loss_axis(test)),
        draw("Test accuracy", accuracy, _ACCURACY),
        draw("Test error", [_error(line) for line in accuracy], _ERROR, note="logarithmic"),
        *_step_charts([(letter(i), color(i), run.train) for i, run in enumerate(runs)]),
    ]


def _step_charts(sources: Sequence[tuple[str, str, list[Record]]]) -> list[Chart]:
    """Learning rate, images per second and, where there is one, loss scale."""
    rates, speeds, scales = (
        [series_of(*source, key) for source in sources] for key in ("lr", "images_per_sec", "loss_scale")
    )
    charts = [
        draw("Learning rate", rates, Axis(low=0.0, form="{:.3g}".format)),
        draw("Images per second", speeds, Axis(low=0.0, form=_rate)),
    ]
    scaled = [line for line in scales if (line.values != 1).any()]  # without a GradScaler the scale is 1
    if scaled:
        charts.append(draw("Loss scale", scaled, Axis("log2", form=power_of_two)))
    return charts


def _rate(speed: float) -> str:
    return number(float(f"{speed:.3g}"))


def scale_note(runs: Sequence[RunRecord]) -> str:
    if {
        record["loss_scale"] for run in runs for record in run.train if record.get("loss_scale") is not None
    } != {1}:
        return ""  # drawn, or not recorded
    return "1 throughout: only fp16 needs one; bf16 and fp32 have the range for small gradients."


def _loss_axis(lines: Sequence[Series]) -> Axis:
    """Logarithmic where one excursion would flatten all the rest."""
    values = np.concatenate([line.values for line in lines]) if lines else np.empty(0)
    spread = len(values) > 0 and values.min() > 0 and values.max() > 20 * np.median(values)
    return Axis("log10" if spread else "linear", low=None if spread else 0.0)


def _error(line: Series) -> Series:
    return Series(line.name, line.color, line.epochs, 1 - line.values, 1 - line.last)
