"""Compare the draws of the kernel, of the definition, and of numpy for the other loaders: all are equal."""

import pytest
import torch

from kernels.epoch_draws.op import epoch_draws
from kernels.epoch_draws.reference import DrawRanges, epoch_draws_reference
from pipeline.config import PlainAugment
from pipeline.data.sampling.padded_crops import draw_padded_crops
from tests.gpus import DEVICE, USES_GPU

pytestmark = USES_GPU


@pytest.mark.parametrize(("mode", "contrast"), [("clipped", 0.0), ("inside", 0.0), ("inside", 0.1)])
@pytest.mark.parametrize("key", [(0, 0), (1, 16), (2**63 - 1, 2**40)])
@pytest.mark.parametrize(
    ("num_samples", "padding", "flip", "cutout"),
    [(1, 4, True, 16), (777, 4, True, 16), (300, 0, False, 0), (257, 2, "alternating", 5)],
)
def test_kernel_definition_and_numpy_agree(
    mode: str,
    contrast: float,
    key: tuple[int, int],
    num_samples: int,
    padding: int,
    flip: bool | str,
    cutout: int,
) -> None:
    image_size = (31, 33)
    ranges = DrawRanges(image_size, padding, flip, cutout, mode == "inside", contrast > 0)
    kernel = epoch_draws(*key, num_samples, ranges, DEVICE)
    reference = epoch_draws_reference(*key, num_samples, ranges)
    augment = PlainAugment.model_validate(
        {"crop_padding": padding, "flip": flip, "cutout": cutout, "cutout_mode": mode, "contrast": contrast}
    )
    numpy = draw_padded_crops(*key, num_samples, image_size, augment)
    for actual, expected, other in zip(kernel, reference, (numpy.order, numpy.table()), strict=True):
        assert torch.equal(actual.cpu(), expected)
        assert torch.equal(actual.cpu(), torch.from_numpy(other))
