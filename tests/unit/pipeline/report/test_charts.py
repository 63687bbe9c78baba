"""The report's charts: where lines, ticks and names stand."""

import re

import numpy as np
import pytest

from pipeline.report.charts import HEIGHT, WIDTH, Axis, draw
from pipeline.report.curves import series_of


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
    ],
)
@pytest.mark.parametrize("scale", ["linear", "log10", "log2"])
def test_lines_stay_inside_their_panel(values: list[float], scale: str):
    records = [{"epoch": i / 10, "v": value} for i, value in enumerate(values)]
    chart = draw(
        "Title",
        [series_of("a", "c1", records, "v"), series_of("b", "c2", records, "v")],
        Axis(scale, high=1.0),
    )
    for line in chart.lines:
        places = [float(number) for number in re.findall(r"[-\d.]+(?:e[-+]\d+)?", line.path)]
        assert all(chart.left <= x <= chart.right for x in places[::2]) and all(
            chart.top <= y <= chart.bottom for y in places[1::2]
        )
        assert len(line.path) < 10_000 and 0 < line.end[1] < HEIGHT
    assert (
        len(chart.lines) < 2 or abs(chart.lines[0].end[1] - chart.lines[1].end[1]) >= 13
    )  # names do not overlap
    assert 2 <= len(chart.y_ticks) <= 10 or not chart.lines
    assert chart.width == WIDTH


def test_what_a_logarithmic_axis_has_no_place_for_shortens_no_axis():
    """An error of 0 is left out of the line; the epochs go on, and the name stands at the foot."""
    records = [{"epoch": i, "v": value} for i, value in enumerate([0.5, 0.1, 0.01, 0.0, 0.0], 1)]
    chart = draw("Error", [series_of("test", "c1", records, "v")], Axis("log10"))
    assert chart.x_ticks[-1] == (chart.right, "5")
    (line,) = chart.lines
    assert line.path.count("L") == 2 and line.end[1:] == (chart.bottom, "test 0")
    assert chart.description == "Error over 5 epochs: test from 0.5 to 0."
    assert (
        draw("Error", [series_of("test", "c1", records[3:], "v")], Axis("log10")).empty == "nothing above 0"
    )
    assert draw("Error", [], Axis("log10")).empty == "nothing recorded"
