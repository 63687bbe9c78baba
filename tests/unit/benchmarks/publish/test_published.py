"""Figures of recipes beside published ones: the chart of error by depth, the table, the front page."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.charts import depth, figures
from benchmarks.charts.depth import Point
from benchmarks.publish import published
from benchmarks.publish import results as results_table
from benchmarks.publish.records import Record
from pipeline.errors import UserError
from tests.unit.benchmarks.recorded import NAME


def test_the_error_by_depth_of_ours_beside_the_papers(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: dict[str, list[tuple[float, ...]]] = {}
    draw_names = depth._draw_names

    def spy(axes: Any, lines: Any) -> None:
        for name, points, _ in lines:
            drawn[name] = [
                (point.depth, round(point.error, 2), round(point.deviation, 2)) for point in points
            ]
        draw_names(axes, lines)

    monkeypatch.setattr(depth, "_draw_names", spy)
    changed = record.model_copy(update={"accuracy": 0.5, "config": record.config | {"duration": "1ep"}})
    (path,) = figures.draw_all([record, changed], tmp_path)
    assert path.name == "nvidia-h200-depth.png" and path.stat().st_size > 10_000
    assert drawn == {
        "He et al. 2015, CIFAR-10": [(20, 8.75, 0)],
        "re-implemented, CIFAR-10": [(20, 10.52, 0)],
        "ours, CIFAR-10 in grey": [(20, 8.8, 0.2)],
        "ours without shortcuts, CIFAR-10 in grey": [],
    }
    assert figures.draw_all([changed], tmp_path) == []


def test_names_of_lines_by_depth_do_not_cover_each_other(monkeypatch: pytest.MonkeyPatch):
    """Three lines end within a tenth of a point; the lowest keeps its place, the others move up."""
    figure = Figure(figsize=(6, 4))
    axes = figure.add_axes((0.1, 0.1, 0.6, 0.8))
    axes.set(xlim=(20, 56), ylim=(5, 10))
    written: dict[str, float] = {}
    monkeypatch.setattr(
        depth, "_write", lambda axes, text, place, *_, **keys: written.update({text: place[1]})
    )
    errors = {"low": 7.0, "middle": 7.05, "high": 7.1, "far": 9.0, "early": 7.0}
    lines = [
        (name, [Point(44 if name == "early" else 56, error)], depth._OURS) for name, error in errors.items()
    ]
    depth._draw_names(axes, lines)
    line_height = 18 * 5 / axes.get_window_extent().height
    gap = pytest.approx(line_height)
    assert written["low"] == written["early"] == 7.0 and written["far"] == 9.0
    assert written["middle"] - written["low"] == gap and written["high"] - written["middle"] == gap


def test_published_figures_stand_beside_ours(record: Record):
    rows = [row for row in published.table([record]).rows if row[0] == "ResNet-20" and "Table 6" in row[3]]
    assert [row[4:] for row in rows] == [("91.25 %", NAME, "91.20 ± 0.20 % (3) on CIFAR-10 in grey")]
    assert not any(row[-1] for row in published.table([]).rows)


def test_the_front_page_prefers_a_record_on_the_data_of_the_published_figure(record: Record):
    published_cell = f"| `{NAME}` | 91.25 % (He et al. 2015"
    assert results_table.chosen([record]) == [record]
    text = results_table.markdown([record]).replace("\N{NO-BREAK SPACE}", " ")
    assert "seconds on one H200" in text and published_cell in text
    assert "| 91.20 ± 0.20 % (3) ¹ | 201.0 |" in text and "¹ On CIFAR-10 in grey, so not comparable" in text
    original = record.model_copy(update={"data": "CIFAR-10", "train_s": None})
    changed = record.model_copy(update={"config": record.config | {"duration": "80ep"}})
    others = [record.model_copy(update=update) for update in ({"gpu": None}, {"world_size": 2})]
    assert results_table.chosen([original, record]) == [original]
    assert results_table.chosen([changed, *others]) == []
    text = results_table.markdown([original]).replace("\N{NO-BREAK SPACE}", " ")
    assert "| 91.20 ± 0.20 % (3) | not measured |" in text and "¹" not in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accuracy: 91.25", "accuracy: 9125", "figures.0.accuracy: Input should be less than 100"),
        (
            "    source: He et al. 2015, arXiv:1512.03385, Table 6\n    recipe: cifar10_resnet20\n",
            "",
            "figures.0.source: Field required",
        ),
        (
            "recipe: cifar10_resnet20",
            "recipe: cifar10_resnet21",
            "figures.0.recipe: cifar10_resnet21 is not in configs/",
        ),
    ],
)
def test_a_bad_published_figure_is_named(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "published.yaml"
    path.write_text(published.FILE.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        published.read(path)
