"""Checks Grad-CAM against maps derived by hand, and the selection of images, layers and classes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import explain
from pipeline.errors import UserError


class TinyNet(nn.Module):
    """Convolution, batch norm, ReLU, global average, linear.

    Grad-CAM's weights are those of the linear layer over the area.
    """

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
    """Compute equations 1 and 2 of Selvaraju et al.; the gradient at each position is head.weight / area."""
    activations = functional.relu(model.norm(model.conv(images)))
    weights = model.head.weight[classes] / (activations.shape[2] * activations.shape[3])
    maps = functional.relu(torch.einsum("nc,nchw->nhw", weights, activations))
    resized = functional.interpolate(
        unit_range(maps)[:, None], images.shape[2:], mode="bilinear", align_corners=False
    )
    return unit_range(resized[:, 0])


# Two channels, the image's red and green, averaged; the logit of class 0 is red less green. Derived by hand:
#   red = 4 0 / 2 8, green = 0 4 / 2 0. The gradient of logit 0 is 1/4 at each place of red and -1/4 at each
#     place of green: these are Grad-CAM's weights.
#   Grad-CAM: (red - green) / 4 = 1 -1 / 0 2; its positive part, divided by its maximum: 1/2 0 / 0 1.
#   LayerCAM: the positive gradients times the activations, red / 4 = 1 0 / 1/2 2; divided by its maximum:
#     1/2 0 / 1/4 1.
#   Grad-CAM++: the weight of green is 0, because its gradients are negative: red divided by its maximum.
#   Eigen-CAM: without their means, 3.5 and 1.5, the places are (.5, -1.5), (-3.5, 2.5), (-1.5, .5) and
#     (4.5, -1.5). Their scatter matrix is 35 -17 / -17 11, its larger eigenvalue 23 + sqrt(433) = 43.81, the
#     eigenvector (17, 35 - 43.81) = (17, -8.81). Of the projections 21.7 -81.5 / -29.9 89.7 the largest is
#     positive. Their positive parts less the smallest of these, divided by the largest: .242 0 / 0 1.
BY_HAND = {
    "gradcam": [[0.5, 0], [0, 1]],
    "hirescam": [[0.5, 0], [0, 1]],
    "layercam": [[0.5, 0], [0.25, 1]],
    "gradcam++": [[0.5, 0], [0.25, 1]],
    "eigencam": [[0.242, 0], [0, 1]],
}


@pytest.mark.parametrize("method", BY_HAND)
def test_maps_of_four_pixels_derived_by_hand(method: str) -> None:
    channels = nn.Conv2d(3, 2, 1, bias=False)
    model = nn.Sequential(channels, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        channels.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]])[..., None, None])
        model[3].weight.copy_(torch.tensor([[1.0, -1], [-1, 1]]))  # pyright: ignore[reportCallIssue]
        model[3].bias.zero_()  # pyright: ignore[reportCallIssue]
    image = torch.tensor([[[4.0, 0], [2, 8]], [[0, 4], [2, 0]], [[9, 9], [9, 9]]])[None]
    found = explain.explain_images(
        model, image, channels, method=method, classes=None if method == "eigencam" else [0]
    )
    np.testing.assert_allclose(found.maps[0], BY_HAND[method], atol=1e-3 if method == "eigencam" else 1e-5)
    expected = [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))]  # the logits are 2 and -2
    np.testing.assert_allclose(found.probabilities[0], expected, rtol=1e-5)
    assert (found.predicted.tolist(), found.classes.tolist()) == ([0], [0])


@pytest.mark.parametrize("method", explain.METHODS)
def test_every_method_gives_maps(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, images = tiny_net().eval(), noise(3)
    found = explain.explain_images(model, images, model.relu, method=method)
    assert found.maps.shape == (3, 12, 12) and found.maps.dtype == np.float32
    assert (
        np.isfinite(found.maps).all() and found.maps.min() >= 0 and found.maps.max() <= 1 and found.maps.any()
    )
    other = explain.explain_images(
        model, images, model.relu, method=method, classes=(found.predicted + 1) % 4
    )
    assert np.array_equal(found.maps, other.maps) is (method in explain.CLASS_AGNOSTIC)
    with torch.no_grad():
        np.testing.assert_allclose(found.probabilities, model(images).softmax(1).numpy(), atol=1e-6)
    assert capfd.readouterr() == ("", "")  # the library draws progress bars


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(
        UserError, match=r"there is no 'grad-cam', did you mean gradcam; methods are gradcam, gradcam\+\+"
    ):
        explain.explain_images(tiny_net(), noise(), nn.ReLU(), method=explain.check_method("grad-cam"))


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
    np.testing.assert_allclose(
        found.maps, grad_cam_by_hand(model, images, expected.argmax(dim=1)).numpy(), atol=1e-5
    )
    assert found.maps.max() > 0.9  # the comparison is not one of zeros


def test_a_given_class_is_the_one_explained() -> None:
    model, images, classes = tiny_net().eval(), noise(), [0, 1, 2, 3, 0]
    found = explain.explain_images(model, images, model.relu, classes=classes, batch_size=3)
    np.testing.assert_allclose(
        found.maps, grad_cam_by_hand(model, images, torch.tensor(classes)).numpy(), atol=1e-5
    )


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
    # the traceback still holds the library's object, whose end would remove the hooks too
    assert caught.value.__traceback__ is not None
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
    with pytest.raises(AssertionError, match="target layer"):
        explain.explain_images(tiny_net(), noise(), nn.ReLU())


def test_mistakes_come_first_by_confidence_then_the_least_confident() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 0, 1])  # 1 and 2 are mistakes
    chosen = [explain.select_images(np.log(probabilities), labels, count).tolist() for count in (1, 2, 4, 9)]
    assert chosen == [[2], [2, 1], [2, 1, 3, 4], [2, 1, 3, 4, 0]]


def test_confidence_that_rounds_to_one_is_still_ordered() -> None:
    logits = np.array([[30.0, 0.0], [80.0, 0.0], [25.0, 0.0], [30.0, 0.0]], dtype=np.float32)
    assert explain.select_images(logits, np.ones(4, np.int64), 4).tolist() == [1, 0, 3, 2]
    assert explain.select_images(logits, np.zeros(4, np.int64), 4).tolist() == [2, 0, 3, 1]


# --- layers and classes -------------------------------------------------------------------------------------


def test_a_layer_by_name() -> None:
    model = tiny_net().train()
    assert explain.find_layer(model, noise(1), "norm") is model.norm
    assert model.training and not any(module._forward_hooks for module in model.modules())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.relu, self.spare = nn.ReLU(), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.relu(self.relu(self.conv(images)) - 1).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnov", "the network has no layer 'cnov'; near: conv"),
        ("zzz", "the network has no layer 'zzz'; near: conv"),
        ("", "the network has no layer ''"),
        ("head", "head .* 2, which has no height and width; choose another, such as conv"),
        ("spare", "spare is not used.*; choose another, such as conv"),
        ("relu", "relu .* 2 times"),
    ],
)
def test_a_layer_that_gives_no_map_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match="^layer: " + message):
        explain.find_layer(Twice(), noise(1), name)


class Attention(nn.Module):
    """Patches, then heads of tokens: four dimensions that are no map."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.heads, self.head = nn.Conv2d(3, 8, 4, 4), nn.Identity(), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(
            self.heads(tokens.unflatten(2, (2, 4)).transpose(1, 2)).transpose(1, 2).flatten(2).mean(dim=1)
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [("zzz", "near: patches$"), ("heads", "heads .* 2 x 9 x 4.*, such as patches$")],
)
def test_tokens_of_heads_are_no_map(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain.find_layer(Attention(), noise(1), name)


@pytest.mark.parametrize(
    ("target", "parsed"),
    [("predicted", "predicted"), ("true", "true"), ("dog", 1), ("2", 0), ("1", 1), (1, 1), ("frog 2", 2)],
)
def test_a_class_by_name_or_index(target: str | int, parsed: str | int) -> None:
    assert explain.parse_target(target, ["2", "dog", "frog 2"]) == parsed


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("3", "3 is none of the indices 0 to 2"),
        ("-1", "there is no class '-1'"),
        ("dgo", "there is no class 'dgo'; near: dog; or an index"),
    ],
)
def test_a_class_that_is_not_there(target: str, message: str) -> None:
    with pytest.raises(UserError, match="^class: " + message):
        explain.parse_target(target, ["2", "dog", "frog"])
