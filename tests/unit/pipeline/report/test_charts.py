"""Checks the layout of charts: the places of lines, ticks and labels."""

import math

import numpy as np
import pytest

from pipeline.optim.schedule import build_schedule
from pipeline.report.charts import HEIGHT, WIDTH, Axis, Chart, lay_out
from pipeline.report.panels import charts_of_one
from pipeline.report.run_record import Metrics
from pipeline.report.series import decimals, number, series_of
from pipeline.run.records import TrainRecord
from tests.tiny import a_train_record, an_eval_record, tiny_config


def value_of(label: str) -> float:
    factor, ten, power = label.replace(",", "").rpartition("10")
    exponent = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    if not ten or exponent == power:
        return float(label.replace(",", ""))
    return float(f"{factor.removesuffix('×') or 1}e{exponent}")


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [1.0000001],
        [1.5, 1.5],
        [0.5, 0.5],
        [1e-6, 3.0, 2e5],
        [0.2, 0.9],
        [0.0, 1.0],
        list(np.linspace(5, 1, 5000)),
        [2.5, 4e8, 1.8e27],
        [1.2e5, 4e5],
        [3e-12, 1e-12],
    ],
)
@pytest.mark.parametrize("scale", ["linear", "log10", "log2"])
def test_lines_run_through_their_values(values: list[float], scale: str):
    """The ticks of the y axis tell the place of a value; only a linear axis is bounded at 1."""
    records = [a_train_record(i, loss=value, epoch=i / 10) for i, value in enumerate(values)]
    lines = [series_of("a", "c1", records, "loss"), series_of("b", "c2", records, "loss")]
    chart = lay_out("Title", lines, Axis(scale, high=1.0))
    assert 2 <= len(chart.y_ticks) <= 10 and chart.width == WIDTH
    transform = {"linear": lambda value: min(value, 1.0), "log10": math.log10, "log2": math.log2}[scale]
    numbers = [transform(value_of(text)) for _, text in chart.y_ticks]
    slope, foot = np.polyfit(numbers, [y for y, _ in chart.y_ticks], 1)
    drawable = {i: transform(value) for i, value in enumerate(values) if scale == "linear" or value > 0}
    pitch = (chart.right - chart.left) / max(len(values) - 1, 1)
    across = [chart.left + pitch * i for i in drawable]
    up = [slope * value + foot for value in drawable.values()]
    for line in chart.lines:
        points = [tuple(map(float, pair.split())) for pair in line.path.removeprefix("M").split("L")]
        assert len(points) == len(drawable) or 200 < len(points) < len(drawable)
        assert len(line.path) < 10_000 and 0 < line.end[1] < HEIGHT
        assert [points[0][0], points[-1][0]] == pytest.approx([across[0], across[-1]], abs=0.1)
        assert [y for _, y in points] == pytest.approx(np.interp([x for x, _ in points], across, up), abs=1)
    assert abs(chart.lines[0].end[1] - chart.lines[1].end[1]) >= 13  # the labels do not overlap


def test_an_error_of_0_does_not_shorten_a_logarithmic_axis():
    """It is left out of the line; the epochs go on, and the label stands at the foot."""
    records = [a_train_record(i, loss=v, epoch=i) for i, v in enumerate([0.5, 0.1, 0.01, 0.0, 0.0], 1)]
    chart = lay_out("Error", [series_of("test", "c1", records, "loss")], Axis("log10"))
    assert chart.x_ticks[-1] == (chart.right, "5")
    (line,) = chart.lines
    assert line.path.count("L") == 2 and line.end[1:] == (chart.bottom, "test 0")
    assert chart.description == "Error over 5 epochs, on a logarithmic axis: test from 0.5 to 0."
    assert chart.note == "logarithmic"
    nothing = lay_out("Error", [series_of("test", "c1", records[3:], "loss")], Axis("log10"))
    assert nothing.empty == ("nothing above 0",)
    assert lay_out("Error", [], Axis("log10")).empty == ("nothing recorded",)


def loss_chart(*losses: float) -> Chart:
    records = [a_train_record(i, loss=loss, epoch=i) for i, loss in enumerate(losses, 1)]
    return charts_of_one(Metrics(records))[0]


@pytest.mark.parametrize("losses", [(2.0, 1.0, 0.8, 0.7, 1e6), (2.3, 1.9, 1.0, 0.1, 0.002)])
def test_losses_far_apart_get_a_logarithmic_axis_which_is_named(losses: tuple[float, ...]):
    chart = loss_chart(*losses)
    assert chart.y_ticks[0][1] != "0" and chart.note == "logarithmic"
    assert "logarithmic axis" in chart.description


def test_losses_near_each_other_do_not():
    chart = loss_chart(2.3, 1.0, 0.5, 0.1)
    assert chart.y_ticks[0][1] == "0" and chart.note == "" and "axis" not in chart.description


def test_large_and_small_losses_are_powers_of_ten():
    chart = loss_chart(4e8, 2.0, 392_811_479.0)
    assert {"10", "10,000", "10⁵", "10⁸"} <= {label for _, label in chart.y_ticks}
    assert chart.lines[0].end[2] == "train 3.93×10⁸"
    assert chart.description.endswith("train from 4×10⁸ to 3.93×10⁸.")
    assert loss_chart(1e-12).lines[0].end[2] == "train 10⁻¹²"


def test_ticks_of_a_linear_axis_are_written_alike():
    assert [label for _, label in loss_chart(5e4, 2e5).y_ticks] == [
        *("0", "5×10⁴", "10⁵", "1.5×10⁵", "2×10⁵"),
    ]


@pytest.mark.parametrize("values", [(2e8, 2.004e8), (1.0, 1.00002), (1234.1, 1234.3), (2e-7, 2.004e-7)])
def test_labels_of_one_axis_differ(values: tuple[float, float]):
    axis = Axis()
    ticks = axis.ticks(np.array(values))
    labels = [label for _, label in axis.labels(ticks)]
    assert len(set(labels)) == len(labels) > 2
    assert [value_of(label) for label in labels] == pytest.approx(ticks, rel=1e-9)


@pytest.mark.parametrize("value", [9.996e-5, 9.999e-5, 1e-4])
def test_a_value_that_is_rounded_to_a_ten_thousandth_has_one_form(value: float):
    assert (number(value), decimals(-value)) == ("0.0001", "-0.0001")


def test_images_per_second_are_written_out_as_in_the_tables():
    records = [a_train_record(1, images_per_sec=123_456.0)]
    chart = next(c for c in charts_of_one(Metrics(records)) if c.title == "Images per second")
    assert chart.lines[0].end[2] == "123,000" and chart.y_ticks[-1][1] == "125,000"


def lr_chart(records: list[TrainRecord], *keys: str) -> Chart:
    metrics = Metrics(records)
    charts = charts_of_one(metrics, metrics.rates_under(tiny_config("duration=40st", *keys)))
    return next(chart for chart in charts if chart.title == "Learning rate")


def test_the_learning_rate_is_that_of_the_schedule():
    """One record of a run of 40 steps, 5 an epoch: the curve has all of its steps."""
    lr_at = build_schedule(0.1, tiny_config().schedule, 5, 40)
    chart = lr_chart([a_train_record(40, lr=lr_at(39))])
    (line,) = chart.lines
    peak = min(y for _, y in line.points)
    assert (
        len(line.points) == 40
        and line.points[10][1] == peak
        and line.points[0][1] > peak < line.points[-1][1]
    )
    assert (line.points[0][0], line.points[-1][0]) == pytest.approx(
        (42 + (chart.right - 42) / 40, chart.right), abs=0.1
    )


def test_recorded_rates_of_another_schedule_are_drawn_as_they_are():
    (line,) = lr_chart([a_train_record(20, lr=0.07), a_train_record(40, lr=0.03)]).lines
    assert len(line.points) == 2 and line.end[2].endswith("0.03")
    assert (
        Metrics([a_train_record(20)]).rates_under(None) is None
        and Metrics().rates_under(tiny_config()) is None
    )


def test_the_loss_scale_is_drawn_for_fp16_alone():
    titles = [
        [chart.title for chart in charts_of_one(Metrics([a_train_record(1, loss_scale=scale)]))]
        for scale in (1.0, 2.0)
    ]
    assert titles[1] == [*titles[0], "Loss scale"]


def test_a_star_marks_the_best_accuracy():
    accuracies = enumerate([0.5, 0.9, 0.7])
    tests = [an_eval_record(5 * i).model_copy(update={"accuracy": value}) for i, value in accuracies]
    (line,) = charts_of_one(Metrics([], {"holdout": [], "test": tests}))[1].lines
    assert line.star == line.points[1]
