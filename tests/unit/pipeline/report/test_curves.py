"""Checks the words of `curves.png`, and that no unusual log breaks it."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipeline.errors import UserError
from pipeline.plotting import style
from pipeline.report import curves


def train_record(epoch: float, **values: float | None) -> dict[str, Any]:
    base = {
        "kind": "train",
        "step": int(100 * epoch),
        "epoch": epoch,
        "loss": 2.0 / (1 + epoch),
        "accuracy": 1 - 0.5 / (1 + epoch),
    }
    speeds = {"images_per_sec": 80000.0, "steps_per_sec": 80.0}
    return {**base, **speeds, "lr": 0.1, "loss_scale": 1.0, "skipped_steps": 0, **values}


def eval_record(epoch: float, correct: int, split: str = "test", loss: float = 1.0) -> dict[str, Any]:
    counts = {"loss": loss, "accuracy": correct / 10_000, "correct": correct, "seen": 10_000}
    return {"kind": "eval", "split": split, "step": int(100 * epoch), "epoch": epoch, **counts}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = style.save_png

    def save_and_keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(style, "save_png", save_and_keep)
    return figures


def draw(folder: Path, records: list[dict[str, Any]], end: str = "\n") -> Path:
    (folder / "metrics.jsonl").write_text(
        "\n".join(json.dumps(record) for record in records) + end, encoding="utf-8"
    )
    return curves.draw_curves(folder)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def test_a_run_with_a_test_set_only(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = tmp_path / "quickstart-20261122-051530"
    folder.mkdir()
    evals = [eval_record(1, 8000), eval_record(2, 9310), eval_record(3, 9205)]
    path = draw(
        folder, [train_record(0.5), evals[0], train_record(1.5), evals[1], train_record(2.5), evals[2]]
    )
    assert path == folder / "curves.png"
    assert size(path) == (1400, 900)
    assert sorted(p.name for p in folder.iterdir()) == ["curves.png", "metrics.jsonl"]
    found = words(drawn[0])
    assert "quickstart-20261122-051530" in found
    assert {
        "test 92.0 %",
        "train 85.7 %",
        "test 1",
        "train 0.5714",
        "★ best test 93.1 %",
        "80,000",
    } <= set(found)
    assert not any("Loss scale" in text for text in found)  # of fp16 alone
    headline = next(text for text in found if text.startswith("test accuracy"))
    assert "92.05 % (9,205 of 10,000) at the last step" in headline
    assert "best 93.10 % at epoch 2, selected on the test set" in headline


def test_best_is_chosen_on_the_holdout_if_there_is_one(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [
        eval_record(1, 9000, "holdout"),
        eval_record(1, 9500),
        eval_record(2, 9100, "holdout"),
        eval_record(2, 9400),
    ]
    draw(tmp_path, records)
    found = words(drawn[0])
    assert {"★ best holdout 91.0 %", "holdout 91.0 %", "test 94.0 %"} <= set(found)
    assert any("best 91.00 % at epoch 2, selected on the holdout set" in text for text in found)


def test_the_loss_scale_has_a_panel_if_there_is_one(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(tmp_path, [train_record(1, loss_scale=65536.0), train_record(2, loss_scale=32768.0)])
    assert {"Loss scale", "2¹⁵"} <= set(words(drawn[0]))


@pytest.mark.parametrize("loss", [1.0, 1.5e5, 3.93e8, 1.81e27, 2.5e-12])
def test_labels_do_not_overlap_and_stay_in_their_chart(
    loss: float, tmp_path: Path, drawn: list[Figure]
) -> None:
    ends = [
        eval_record(1, 9990, "holdout", loss=1.001 * loss),
        eval_record(1, 9985, loss=loss),
        train_record(1, loss=1.002 * loss, accuracy=1.0, images_per_sec=1_234_567.0),
    ]
    draw(tmp_path, [train_record(0.5, accuracy=0.1), *ends])
    for axes in drawn[0].axes:
        panel = axes.get_window_extent()
        assert all(
            panel.x0 < text.get_window_extent().x0
            for text in axes.texts
            if text.get_horizontalalignment() == "right"
        )
    for axes in drawn[0].axes[:2]:
        labels = [text for text in axes.texts if text.get_text().startswith(("train ", "holdout ", "test "))]
        boxes = sorted((text.get_window_extent() for text in labels), key=lambda box: box.y0)
        assert len(boxes) == 3
        # text boxes include the space below letters, which may overlap
        assert all(below.y1 <= above.y0 + 4 for below, above in pairwise(boxes))
        panel = axes.get_window_extent()
        assert all(panel.x0 < box.x0 and box.x1 < panel.x1 + 24 for box in boxes)
        assert all(panel.y0 < box.y0 and box.y1 < panel.y1 for box in boxes)


def test_values_that_are_not_finite_are_left_out_and_named(tmp_path: Path, drawn: list[Figure]) -> None:
    bad = [train_record(2, loss=math.nan, accuracy=None, loss_scale=math.inf), train_record(3, loss=math.inf)]
    draw(tmp_path, [train_record(1), *bad, eval_record(3, 0, loss=math.nan)])
    found = words(drawn[0])
    assert "train NaN" in found
    assert "test 0.0 %" in found
    assert not any(text.startswith("test NaN") for text in found)  # nothing finite: no line to label


def test_a_window_of_skipped_updates_is_no_nan(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(tmp_path, [train_record(1, loss=0.25), train_record(2, loss=None, accuracy=None)])
    assert "train 0.25" in words(drawn[0])


@pytest.mark.parametrize("records", [[], [eval_record(1, 5000)], [{"kind": "note"}]])
def test_little_or_nothing_recorded(
    tmp_path: Path, drawn: list[Figure], records: list[dict[str, Any]]
) -> None:
    assert size(draw(tmp_path, records)) == (1400, 900)
    assert "nothing recorded" in words(drawn[0])


def test_errors_are_drawn_as_soon_as_they_make_a_line(tmp_path: Path, drawn: list[Figure]) -> None:
    """The error of one evaluation would be a single dot, which the panel of accuracies has already."""
    draw(tmp_path, [train_record(0.5), train_record(1), eval_record(1, 5000)])
    draw(tmp_path, [train_record(0.5), eval_record(1, 5000), eval_record(2, 6000)])
    assert ["Error" in words(figure) for figure in drawn] == [False, True]


def test_a_line_cut_short_at_the_end_is_ignored(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(tmp_path, [eval_record(1, 5000)], end='\n{"kind": "eval", "spl')
    assert "test 50.0 %" in words(drawn[0])


def test_a_broken_line_elsewhere_is_an_error_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "note"}\n[1]\n{"kind": "note"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2: not a JSON object"):
        curves.draw_curves(tmp_path)


def test_a_missing_log_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        curves.draw_curves(tmp_path)
