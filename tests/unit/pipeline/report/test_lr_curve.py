"""Checks that the words of the curve of a learning-rate range test are short and inside of the picture."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipeline.plotting import style
from pipeline.report.lr_curve import draw
from pipeline.training.lr_finder import RangeTest, smooth


@pytest.mark.parametrize(
    ("scale", "labels"),
    [(1.0, {"2", "4"}), (1e8, {"2×10⁸", "4×10⁸"}), (1e5, {"10⁵", "4×10⁵"}), (1e-12, {"2×10⁻¹²"})],
)
def test_losses_of_any_size(scale: float, labels: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "save_png", lambda figure, _: drawn.append(figure))
    losses = scale * np.append(np.linspace(4, 1, 36), [2, 3, 4, 5])
    draw(RangeTest(np.geomspace(1e-9, 1e-2, 40), losses, smooth(losses), True), tmp_path / "a.png", "A", "b")
    (figure,) = drawn
    figure.canvas.draw()
    words = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert labels | {"10⁻⁷", "0.01"} <= set(words)
    assert not any("e-" in word or "e+" in word or word == "1e8" for word in words), words
    box = figure.axes[0].yaxis.get_tightbbox()
    assert box is not None and box.x0 > 0
