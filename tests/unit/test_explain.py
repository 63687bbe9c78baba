"""Grad-CAM against a map derived by hand, the choice of images, and the contact sheet's pixels."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipeline import explain, style
from pipeline.errors import UserError

pytestmark = pytest.mark.timeout(120)  # the first import of the grad-cam library takes 13 s or more


class TinyNet(nn.Module):
    """Convolution, batch norm, ReLU, global average, linear: Grad-CAM's weights are those of the linear layer over the area."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(images))).mean(dim=(2, 3)))


def tiny_net(*, inplace: bool = False) -> TinyNet:
    generator = torch.Generator().manual_seed(3)
    model = TinyNet(inplace=inplace)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def noise(count: int = 5, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(4))


def unit_range(maps: Tensor) -> Tensor:
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-7)


@torch.no_grad()
def grad_cam_by_hand(model: TinyNet, images: Tensor, classes: Tensor) -> Tensor:
    """Equations 1 and 2 of Selvaraju et al. for `TinyNet`, whose gradient at each position is head.weight / area."""
    activations = functional.relu(model.norm(model.conv(images)))
    weights = model.head.weight[classes] / (activations.shape[2] * activations.shape[3])
    maps = functional.relu(torch.einsum("nc,nchw->nhw", weights, activations))
    resized = functional.interpolate(unit_range(maps)[:, None], images.shape[2:], mode="bilinear", align_corners=False)
    return unit_range(resized[:, 0])


def test_maps_equal_those_derived_by_hand() -> None:
    model, images = tiny_net().eval(), noise()
    with torch.no_grad():
        expected = model(images).softmax(dim=1)
    found = explain.explain_images(model, images, model.relu, batch_size=2)
    assert found.maps.shape == (5, 12, 12)
    assert found.maps.dtype == np.float32
    np.testing.assert_allclose(found.probabilities, expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.predicted, expected.argmax(dim=1).numpy())
    np.testing.assert_allclose(found.confidence, expected.amax(dim=1).numpy(), atol=1e-6)
    np.testing.assert_allclose(found.maps, grad_cam_by_hand(model, images, expected.argmax(dim=1)).numpy(), atol=1e-5)
    assert found.maps.max() > 0.9  # the comparison is not one of zeros


def test_a_given_class_is_the_one_explained() -> None:
    model, images, classes = tiny_net().eval(), noise(), [0, 1, 2, 3, 0]
    found = explain.explain_images(model, images, model.relu, classes=classes, batch_size=3)
    np.testing.assert_allclose(found.maps, grad_cam_by_hand(model, images, torch.tensor(classes)).numpy(), atol=1e-5)


def test_an_image_without_evidence_has_a_map_of_zeros() -> None:
    model = tiny_net().eval()
    with torch.no_grad():
        model.head.weight[1] = -1.0
    found = explain.explain_images(model, noise(), model.relu, classes=[1] * 5)
    np.testing.assert_array_equal(found.maps, np.zeros((5, 12, 12), np.float32))


def test_an_operation_in_place_after_the_target_layer_changes_no_map() -> None:
    in_place, apart = tiny_net(inplace=True), tiny_net()
    found = explain.explain_images(in_place, noise(), in_place.norm)
    np.testing.assert_allclose(found.maps, explain.explain_images(apart, noise(), apart.norm).maps, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode: type[torch.no_grad] | type[torch.inference_mode]) -> None:
    model = tiny_net()
    expected = explain.explain_images(model, noise(), model.relu)
    with mode():
        found = explain.explain_images(model, noise(), model.relu)
    np.testing.assert_array_equal(found.maps, expected.maps)


def test_the_model_is_left_as_it_was_found() -> None:
    model = tiny_net().train()
    model.norm.eval()
    model.conv.requires_grad_(False)
    model.head.weight.grad = gradient = torch.ones_like(model.head.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    explain.explain_images(model, noise(), model.relu)
    assert (model.training, model.norm.training, model.relu.training) == (True, False, True)
    assert not model.conv.weight.requires_grad
    assert model.head.weight.requires_grad
    assert model.head.weight.grad is gradient
    assert bool((gradient == 1).all())
    assert model.head.bias.grad is None
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("weight", [torch.nan, torch.inf])
def test_a_diverged_model_is_reported_and_released(weight: float) -> None:
    model = tiny_net()
    with torch.no_grad():
        model.head.weight[0] = weight
    with pytest.raises(UserError, match="not finite") as caught:
        explain.explain_images(model, noise(), model.relu)
    assert caught.value.__traceback__ is not None  # still holds the library's object, whose end would remove the hooks too
    assert not model.relu._forward_hooks
    assert model.training


def test_models_that_would_give_wrong_maps_are_refused() -> None:
    half = tiny_net().to(torch.bfloat16)
    with pytest.raises(AssertionError, match="float32"):
        explain.explain_images(half, noise(), half.relu)
    compiled = tiny_net()
    compiled.compile(backend="eager")
    with pytest.raises(AssertionError, match="eager"):
        explain.explain_images(compiled, noise(), compiled.relu)
    with pytest.raises(AssertionError, match="no part"):
        explain.explain_images(tiny_net(), noise(), nn.ReLU())


def test_mistakes_come_first_by_confidence_then_the_least_sure() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 0, 1])  # 1 and 2 are mistakes
    chosen = [explain.select_images(np.log(probabilities), labels, count).tolist() for count in (1, 2, 4, 9)]
    assert chosen == [[2], [2, 1], [2, 1, 3, 4], [2, 1, 3, 4, 0]]


def test_confidence_that_rounds_to_one_is_still_ordered() -> None:
    logits = np.array([[30.0, 0.0], [80.0, 0.0], [25.0, 0.0], [30.0, 0.0]], dtype=np.float32)
    assert explain.select_images(logits, np.ones(4, np.int64), 4).tolist() == [1, 0, 3, 2]
    assert explain.select_images(logits, np.zeros(4, np.int64), 4).tolist() == [2, 0, 3, 1]


def draw(path: Path, count: int, side: int, class_names: list[str], title: str = "a run") -> tuple[np.ndarray, np.ndarray]:
    """The images and the sheet of them (height, width, 3); image 0 is a mistake, the last has no evidence."""
    generator = np.random.default_rng(5)
    images = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    maps = generator.random((count, side, side), dtype=np.float32)
    maps[-1] = 0
    true = np.arange(count) % len(class_names)
    predicted = np.where(np.arange(count) == 0, 1, true)
    confidence = np.linspace(1, 0, count)
    explain.draw_contact_sheet(path, images, maps, true, predicted, confidence, class_names, title, "test accuracy 90.00 %")
    with Image.open(path) as sheet:
        return images, np.asarray(sheet.convert("RGB"))


def test_the_sheet_shows_the_images_pixel_by_pixel(tmp_path: Path) -> None:
    images, sheet = draw(tmp_path / "sheet.png", 10, 32, ["cat", "dog", "frog"])
    assert 1500 <= sheet.shape[1] <= 1700
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    column_pitch = (sheet.shape[1] - 2 * explain._MARGIN_PX + explain._GUTTER_PX) // 5
    for i, image in enumerate(images):
        x, y = explain._MARGIN_PX + i % 5 * column_pitch, explain._HEADER_PX + i // 5 * (128 + explain._CAPTION_PX)
        np.testing.assert_array_equal(sheet[y : y + 128, x : x + 128], image.repeat(4, axis=0).repeat(4, axis=1), err_msg=str(i))
        bar = sheet[y + 128 + 5, x + 4]  # the line under the pair
        np.testing.assert_allclose(bar / 255, to_rgb(style.VERMILLION if i == 0 else style.BLUE), atol=0.01)


@pytest.mark.parametrize("side", [8, 45, 224])
def test_any_size_and_number_of_images(tmp_path: Path, side: int) -> None:
    _, one_row = draw(tmp_path / "one.png", 3, side, ["0", "1"])
    _, three_rows = draw(tmp_path / "three.png", 11, side, ["0", "1"])
    assert one_row.shape[1] == three_rows.shape[1] <= 1700
    assert one_row.shape[0] < three_rows.shape[0]


def test_names_of_any_length_and_script(tmp_path: Path) -> None:
    names = ["x" * 300, "$a$_{b", "größte Kätzchen und andere Tiere", "кошка", "猫", "two\nlines", "undecodable \udcff", ""]
    settings = dict(matplotlib.rcParams)
    _, sheet = draw(tmp_path / "sheet.png", 16, 32, names, title="run " * 200)
    assert dict(matplotlib.rcParams) == settings
    margins = np.concatenate([sheet[:, : explain._MARGIN_PX - 2], sheet[:, -explain._MARGIN_PX + 2 :]], axis=1)
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


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (0.9996, ">99 %"), (0.931, "93 %"), (0.0, "0 %"), (0.001, "<1 %")])
def test_percent_does_not_round_to_certainty(share: float, text: str) -> None:
    assert style.percent(share) == text
