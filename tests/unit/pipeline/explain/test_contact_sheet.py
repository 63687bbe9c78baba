"""Checks the pixels and captions of the contact sheet."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pipeline import explain
from pipeline.explain import Explained, Explanations, contact_sheet
from pipeline.plotting import style


def draw(
    path: Path,
    count: int,
    side: int,
    class_names: list[str],
    title: str = "a run",
    target: str | int = "predicted",
    *,
    labels: bool = True,
) -> tuple[Explained, np.ndarray]:
    """Return images and their sheet (height, width, 3); image 0 is a mistake, the last has an empty map."""
    generator = np.random.default_rng(5)
    images = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    maps = generator.random((count, side, side), dtype=np.float32)
    maps[-1] = 0
    true = np.arange(count) % len(class_names)
    predicted = np.where(np.arange(count) == 0, 1, true)
    probabilities = np.full((count, len(class_names)), 0.01, np.float32)
    probabilities[np.arange(count), predicted] = np.linspace(1, 0, count)
    found = Explanations(maps, probabilities, predicted, predicted)
    sources = tuple(f"test {name}" for name in (class_names * count)[:count])
    shown = Explained(
        images, found, true if labels else None, sources, tuple(class_names), "stages.2", "gradcam", target
    )
    explain.draw_contact_sheet(path, shown, title, "test accuracy 90.00 %")
    with Image.open(path) as picture:
        return shown, np.asarray(picture.convert("RGB"))


def test_a_sheet_without_a_title_keeps_no_room_for_one(tmp_path: Path) -> None:
    shown, page = draw(tmp_path / "titled.png", 1, 32, ["cat", "dog", "frog"])
    explain.draw_contact_sheet(tmp_path / "plain.png", shown)
    with Image.open(tmp_path / "plain.png") as plain:
        assert (
            plain.height == len(page) - 72
            and (np.asarray(plain.convert("RGB"))[56 : 56 + 128] == page[128 : 128 + 128]).all()
        )


def test_the_sheet_shows_images_and_overlays_pixel_by_pixel(tmp_path: Path) -> None:
    shown, page = draw(tmp_path / "contact_sheet.png", 10, 32, ["cat", "dog", "frog"])
    assert 1500 <= page.shape[1] <= 1700
    assert [path.name for path in tmp_path.iterdir()] == ["contact_sheet.png"]
    overlays = shown.overlays(128)
    assert overlays.shape == (10, 128, 128, 3)
    column_pitch = (page.shape[1] - 2 * contact_sheet._MARGIN_PX + contact_sheet._GUTTER_PX) // 5
    for i, image in enumerate(shown.images):
        x, y = (
            contact_sheet._MARGIN_PX + i % 5 * column_pitch,
            contact_sheet._HEADER_PX + i // 5 * (128 + contact_sheet._CAPTION_PX),
        )
        np.testing.assert_array_equal(
            page[y : y + 128, x : x + 128], image.repeat(4, axis=0).repeat(4, axis=1), err_msg=str(i)
        )
        x += 128 + contact_sheet._SEAM_PX
        if i < 9:  # the last says that nothing stands out
            np.testing.assert_array_equal(page[y : y + 128, x : x + 128], overlays[i], err_msg=str(i))
        bar = page[y + 128 + 5, x - 128]  # the line under the pair
        np.testing.assert_allclose(bar / 255, to_rgb(style.VERMILLION if i == 0 else style.BLUE), atol=0.01)


@pytest.mark.parametrize("side", [8, 45, 224])
def test_any_size_and_number_of_images(tmp_path: Path, side: int) -> None:
    _, one_row = draw(tmp_path / "one.png", 3, side, ["0", "1"])
    _, three_rows = draw(tmp_path / "three.png", 11, side, ["0", "1"], labels=False)
    assert one_row.shape[1] == three_rows.shape[1] <= 1700
    assert one_row.shape[0] < three_rows.shape[0]


def test_the_captions_differ_with_what_is_known(tmp_path: Path) -> None:
    sheets = [
        draw(tmp_path / "contact_sheet.png", 2, 32, ["cat", "dog"], target=target, labels=labels)[1]
        for target, labels in (("predicted", True), ("true", True), (0, True), ("predicted", False))
    ]
    assert all(not np.array_equal(sheets[i], sheets[j]) for i in range(4) for j in range(i))


def test_names_of_any_length_and_script(tmp_path: Path) -> None:
    names = [
        "x" * 300,
        "$a$_{b",
        "größte Kätzchen und andere Tiere",
        "кошка",
        "猫",
        "two\nlines",
        "undecodable \udcff",
        "",
    ]
    settings = dict(matplotlib.rcParams)
    _, page = draw(tmp_path / "contact_sheet.png", 16, 32, names, title="run " * 200)
    _, of_class = draw(tmp_path / "contact_sheet.png", 16, 32, names, target=0)
    assert dict(matplotlib.rcParams) == settings
    for drawn in (page, of_class):
        margins = np.concatenate(
            [drawn[:, : contact_sheet._MARGIN_PX - 2], drawn[:, -contact_sheet._MARGIN_PX + 2 :]], axis=1
        )
        assert bool((margins == 255).all()), "text runs into the margin"


def test_shortened_text_fits_and_a_short_one_is_kept() -> None:
    with style.drawing():
        figure = style.new_figure(400, 100)
        long, short = figure.text(0, 0.5, "a long name of a class"), figure.text(0, 0.2, "cat")
        style.shorten(long, 80)
        style.shorten(short, 80)
        assert long.get_window_extent().width <= 80
    assert long.get_text().startswith("a long")
    assert long.get_text().endswith("…")
    assert short.get_text() == "cat"


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.9996, ">99 %"), (0.931, "93 %"), (0.0, "0 %"), (0.001, "<1 %")]
)
def test_percent_does_not_round_to_certainty(share: float, text: str) -> None:
    assert style.percent(share) == text
