"""Tests blurred strides against ffcv-imagenet's, and stochastic depth against torchvision's and timm's."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pipeline.config import ModelConfig
from pipeline.models import build_model
from pipeline.models.optional_layers import StochasticDepth, blur
from pipeline.models.pretrained import from_torchvision
from tests.norms import randomise_norms


class BlurPoolConv2d(nn.Module):
    """The layer of ffcv-imagenet (`train_imagenet.py`): a filter of 3x3, then the convolution."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        kernel = torch.tensor([[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16.0
        self.register_buffer("blur_filter", kernel.repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blurred = F.conv2d(x, self.get_buffer("blur_filter"), padding=(1, 1), groups=self.conv.in_channels)
        return self.conv(blurred)


def apply_blurpool(module: nn.Module) -> None:
    """Replace the convolutions that ffcv-imagenet replaces."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, BlurPoolConv2d(child))
        else:
            apply_blurpool(child)


@pytest.mark.parametrize("size", [8, 9])
def test_the_filter_is_ffcvs(size: int):
    images = torch.randn(2, 5, size, size, generator=torch.Generator().manual_seed(0))
    theirs = BlurPoolConv2d(nn.Conv2d(5, 5, 1))
    expected = F.conv2d(images, theirs.get_buffer("blur_filter"), padding=1, groups=5)
    torch.testing.assert_close(blur(images), expected)
    channels_last = blur(images.contiguous(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_blurred_resnet_is_ffcvs(name: str):
    theirs: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    torch.manual_seed(0)
    randomise_norms(theirs)
    config = ModelConfig(name=name, stem="imagenet", blur_pool=True)
    ours = build_model(config, 7, image_size=64).eval()
    ours.load_state_dict({from_torchvision(key): value for key, value in theirs.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    plain = theirs(images)
    apply_blurpool(theirs)
    expected = theirs(images)
    assert not torch.allclose(plain, expected, rtol=1e-2)
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


def test_images_are_dropped_as_in_torchvision():
    images = torch.randn(1000, 2, 3, 3, generator=torch.Generator().manual_seed(0)).abs() + 1
    layer = StochasticDepth(0.3)
    for drop in (layer, lambda x: torchvision.ops.stochastic_depth(x, 0.3, "row")):
        torch.manual_seed(1)
        kept = check_drops(drop, images)
        assert abs(kept - 0.7) < 0.05
    assert torch.equal(layer.eval()(images), images)


def check_drops(drop: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> float:
    """Check that every image is either 0 or divided by 0.7; return the fraction of the latter."""
    dropped = drop(images)
    is_kept = dropped.flatten(1).any(1)
    torch.testing.assert_close(dropped, images / 0.7 * is_kept[:, None, None, None])
    return is_kept.float().mean().item()


def test_a_network_with_both_is_exported_for_any_number_of_images():
    model = build_model(ModelConfig(name="resnet20", stochastic_depth=0.2, blur_pool=True), 10).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    images = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
    more = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(exported(more), model(more))


@pytest.mark.parametrize("keys", [{}, {"preactivation": True}, {"squeeze_excitation": 16}], ids=str)
def test_the_rates_are_timms(keys: dict):
    config = ModelConfig(name="resnet50", stochastic_depth=0.2, **keys)
    with torch.device("meta"):
        ours = build_model(config, 10, image_size=224)
        theirs = timm.create_model("resnet50", drop_path_rate=0.2)
    rates = [module.probability for module in ours.modules() if isinstance(module, StochasticDepth)]
    expected = [module.drop_prob for module in theirs.modules() if type(module).__name__ == "DropPath"]
    assert len(rates) == 15  # the first block is always kept
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("keys", [{}, {"preactivation": True}], ids=str)
def test_a_dropped_block_is_its_shortcut(keys: dict):
    torch.manual_seed(0)
    config = ModelConfig(name="resnet20", stochastic_depth=0.99, zero_init_residual=False, **keys)
    block = build_model(config, 10).stages[2][2].train()  # type: ignore[index,union-attr]
    x = torch.randn(64, 64, 4, 4)
    out = block(x)
    expected = x if keys else F.relu(x)
    is_shortcut = torch.isclose(out, expected).flatten(1).all(1)
    assert 55 <= is_shortcut.sum() < 64
    assert block.eval()(x).isclose(expected).flatten(1).all(1).sum() == 0
