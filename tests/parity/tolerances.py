"""List the tolerances of all parity tests, by op and precision, each with its reason."""

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    """The accepted difference: |actual - expected| <= atol + rtol * |expected|."""

    rtol: float
    atol: float
    reason: str


_FLOAT16 = torch.finfo(torch.float16)
_BFLOAT16 = torch.finfo(torch.bfloat16)

TOLERANCES = {
    ("augment", torch.float32): Tolerance(0, 0, "the same three float32 operations, uncontracted"),
    ("augment", torch.float16): Tolerance(0, 0, "as float32, then one correctly rounded cast"),
    ("augment", torch.bfloat16): Tolerance(0, 0, "as float32, then one correctly rounded cast"),
    ("augment, interpreted", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 0, "Triton's interpreter truncates to bfloat16: one unit in the last place"
    ),
    # The expected value is float64 arithmetic on the same, already rounded logits. The loss is float32
    # whatever the logits' dtype.
    ("label smoothing loss", torch.float32): Tolerance(
        2e-6, 2e-6, "float32 sums over classes and rows, fast exp and log, about 16 roundings"
    ),
    ("label smoothing gradient", torch.float32): Tolerance(
        2e-6, 2e-6, "p - q cancels: the error is absolute, times the gradient by the loss over B"
    ),
    ("label smoothing gradient", torch.float16): Tolerance(
        _FLOAT16.eps, 2e-6, "as float32, then a cast, to half a unit in the last place"
    ),
    ("label smoothing gradient", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 2e-6, "as float32, then a cast, which the interpreter truncates"
    ),
    # Batch norm: expected values are float64 arithmetic on the same, already rounded activations, which are
    # of order 1.
    ("batch norm y", torch.float32): Tolerance(
        2e-6, 4e-6, "float32 mean and variance, then three operations that cancel"
    ),
    ("batch norm y", torch.float16): Tolerance(
        _FLOAT16.eps, 4e-6, "as float32, then a cast, to half a unit in the last place"
    ),
    ("batch norm y", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 4e-6, "as float32, then a cast, which the interpreter truncates"
    ),
    ("batch norm dx", torch.float32): Tolerance(
        2e-6, 2e-5, "three terms that cancel, of gradients up to 8 by 1 / standard deviation"
    ),
    ("batch norm dx", torch.float16): Tolerance(
        _FLOAT16.eps, 2e-5, "as float32, then a cast, to half a unit in the last place"
    ),
    ("batch norm dx", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 2e-5, "as float32, then a cast, which the interpreter truncates"
    ),
    ("batch norm dresidual", torch.float32): Tolerance(
        0, 0, "the gradient or 0; sums of two are exact for the quarters of the test"
    ),
    ("batch norm dresidual", torch.float16): Tolerance(0, 0, "as float32"),
    ("batch norm dresidual", torch.bfloat16): Tolerance(0, 0, "as float32"),
    ("batch norm dweight", torch.float32): Tolerance(
        2e-6, 2e-4, "float32 sums, which cancel, of hundreds of products up to 20"
    ),
    ("batch norm dbias", torch.float32): Tolerance(
        2e-6, 1e-4, "float32 sums, which cancel, of hundreds of gradients up to 8"
    ),
    # With a SiLU or GELU and a residual, or two uses of y, backward rounds dz to the dtype of x, and sums it.
    ("batch norm dx, rounded dz", torch.float32): Tolerance(2e-6, 2e-5, "as dx: dz is not rounded"),
    ("batch norm dx, rounded dz", torch.float16): Tolerance(
        _FLOAT16.eps, 8e-3, "half a unit in the last place of dz, up to 4, by weight / deviation, up to 3"
    ),
    ("batch norm dx, rounded dz", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 1e-1, "as float16 with 8 bits, which the interpreter truncates"
    ),
    ("batch norm dresidual, rounded dz", torch.float32): Tolerance(
        2e-6, 2e-5, "a quarter up to 8 times a slope, about 10 roundings"
    ),
    ("batch norm dresidual, rounded dz", torch.float16): Tolerance(
        _FLOAT16.eps, 2e-5, "as float32, then a cast, to half a unit in the last place"
    ),
    ("batch norm dresidual, rounded dz", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 2e-5, "as float32, then a cast, which the interpreter truncates"
    ),
    ("batch norm dweight, rounded dz", torch.float32): Tolerance(2e-6, 2e-4, "as dweight"),
    ("batch norm dweight, rounded dz", torch.float16): Tolerance(
        _FLOAT16.eps, 5e-3, "over √M: products of up to 5, each of a rounded dz up to 4"
    ),
    ("batch norm dweight, rounded dz", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 4e-2, "as float16 with 8 bits, which the interpreter truncates"
    ),
    ("batch norm dbias, rounded dz", torch.float32): Tolerance(2e-6, 1e-4, "as dbias"),
    ("batch norm dbias, rounded dz", torch.float16): Tolerance(
        _FLOAT16.eps, 5e-3, "over √M: rounded dz up to 4"
    ),
    ("batch norm dbias, rounded dz", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 4e-2, "as float16 with 8 bits, which the interpreter truncates"
    ),
    ("batch norm statistics", torch.float32): Tolerance(
        1e-6, 1e-6, "float32 sums of shifted values, about 10 roundings"
    ),
    ("batch norm shifted mean", torch.float32): Tolerance(
        2e-7, 0, "two units in the last place, whatever the mean"
    ),
    ("batch norm shifted deviation", torch.float32): Tolerance(
        1e-6, 0, "of values less a shift near the mean: as for a mean of 0"
    ),
    ("network, fused norm", torch.float32): Tolerance(
        1e-5, 2e-5, "twenty norms forward and back; values and gradients scaled to order 1"
    ),
    ("network, share of a gradient, fused norm", torch.float32): Tolerance(
        0,
        2e-2,
        "a bias before another norm has a gradient of sums that nearly cancel, in up to 53 norms; "
        "a wrong path has an error of order 1",
    ),
    # The stem's convolution: expected values are float64 arithmetic on the same, already rounded images,
    # weights and gradients.
    ("stem conv y", torch.float32): Tolerance(
        2e-6, 1e-5, "a float32 sum, which cancels, of up to 27 products up to 10"
    ),
    ("stem conv y", torch.float16): Tolerance(
        _FLOAT16.eps, 1e-5, "as float32, then a cast, to half a unit in the last place"
    ),
    ("stem conv y", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 1e-5, "as float32, then a cast, which the interpreter truncates"
    ),
    ("stem conv dweight", torch.float32): Tolerance(
        2e-6,
        5e-3,
        "sums, which cancel, of thousands of products up to 20; "
        "tensor cores add products with fewer bits than float32",
    ),
    ("stem conv dweight", torch.float16): Tolerance(
        _FLOAT16.eps, 5e-3, "as float32, then a cast, to half a unit in the last place"
    ),
    ("stem conv dweight", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 5e-3, "as float32, then a cast, which the interpreter truncates"
    ),
    # The stem in one op: as above, with batch norm after the convolution.
    ("stem y", torch.float32): Tolerance(
        2e-6, 2e-5, "a sum of up to 27 products, and statistics from moments; values are of order 1"
    ),
    ("stem y", torch.float16): Tolerance(
        _FLOAT16.eps, 2e-5, "as float32, then a cast, to half a unit in the last place"
    ),
    ("stem y", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 2e-5, "as float32, then a cast, which the interpreter truncates"
    ),
    ("stem statistics", torch.float32): Tolerance(
        2e-5, 2e-5, "float32 moments: tensor cores truncate as they add"
    ),
    ("stem deviation, smooth images", torch.float32): Tolerance(
        5e-4, 0, "a difference of moments some hundred times as large"
    ),
    ("stem gradients", torch.float32): Tolerance(
        2e-5, 2e-2, "three terms that cancel, each a sum of thousands of products up to 20"
    ),
    # A convolution before a max-pool. Backward, the gradient by each maximum is rounded to the dtype of x.
    # The sums of its products with x, up to 1, are over √M.
    ("pooled conv", torch.float16): Tolerance(
        _FLOAT16.eps, 1e-5, "a float32 sum, which cancels, then a cast, to half a unit in the last place"
    ),
    ("pooled conv dweight", torch.float16): Tolerance(
        _FLOAT16.eps, 5e-3, "half a unit in the last place of the gradient by a maximum, up to 20"
    ),
    ("pooled conv dweight", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 5e-2, "as float16 with 8 bits, which the interpreter truncates"
    ),
    # The norm of inference: activations of order 1, variances from 0.1 on.
    ("inference norm y", torch.float32): Tolerance(
        2e-6, 1e-5, "up to two float32 norms of values up to 20, whose sum cancels"
    ),
    ("inference norm y", torch.float16): Tolerance(
        _FLOAT16.eps, 1e-5, "as float32, then a cast, to half a unit in the last place"
    ),
    ("inference norm y", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 1e-5, "as float32, then a cast, which the interpreter truncates"
    ),
    # The whitening stem: images, weights and bias are up to 4, and taps 12.
    ("whitening stem y", torch.float32): Tolerance(
        2e-6, 1e-5, "a float32 sum, which cancels, of up to 13 products up to 10, then a GELU"
    ),
    ("whitening stem y", torch.float16): Tolerance(
        _FLOAT16.eps, 1e-5, "as float32, then a cast, to half a unit in the last place"
    ),
    ("whitening stem y", torch.bfloat16): Tolerance(
        _BFLOAT16.eps, 1e-5, "as float32, then a cast, which the interpreter truncates"
    ),
    ("whitening stem dbias", torch.float32): Tolerance(
        2e-6, 2e-5, "over √M: float32 sums, which cancel, of products up to 5"
    ),
    # Muon: expected values are float64 arithmetic, the iteration included.
    ("muon momentum", torch.float32): Tolerance(2e-7, 2e-7, "three float32 operations on values up to 4"),
    ("muon weights", torch.float32): Tolerance(
        1e-6, 1e-6, "an iteration in float32, then four operations on values up to 4"
    ),
    # the next two: norm of the difference, as a fraction of the norm of the change of the weight
    ("muon change", torch.bfloat16): Tolerance(
        3e-2, 0, "iterations in bfloat16: .4 to 1.6 %, as in the reference (up to 2 %)"
    ),
    ("muon change, interpreted", torch.bfloat16): Tolerance(
        4e-2, 0, "likewise, and Triton's interpreter truncates to bfloat16"
    ),
    ("loader", torch.float32): Tolerance(
        2e-7, 4e-7, "(x - mean) / std against (x - mean) * (1 / std): two units in the last place"
    ),
    ("loader", torch.float16): Tolerance(
        _FLOAT16.eps, 0, "as float32, then a cast, which may round the other way"
    ),
    ("loader, brightness and contrast", torch.float32): Tolerance(
        4e-7,
        8e-7,
        "as the other loaders, then a sum with a rounded shift and a product with a rounded factor",
    ),
    ("loader, brightness and contrast", torch.float16): Tolerance(
        _FLOAT16.eps, 8e-7, "as float32, whose sum can cancel, then a cast, which may round the other way"
    ),
    ("loader, DALI on the GPU", torch.float32): Tolerance(2e-7, 4e-7, "as the other loaders"),
    ("loader, DALI on the GPU", torch.float16): Tolerance(
        0,
        2e-3,
        "DALI's GPU kernel rounds before it adds: one unit in the last place of the largest value, "
        "an eighth of a grey level",
    ),
    ("20 losses, compiled", torch.float32): Tolerance(
        2e-3, 0, "fused batch norm sums in another order, amplified by 20 updates"
    ),
    ("20 losses, compiled", torch.bfloat16): Tolerance(
        2e-2, 0, "as float32; activations are rounded to 8 bits at other places"
    ),
    ("20 losses, compiled", torch.float16): Tolerance(
        1e-2, 0, "as float32; activations are rounded to 11 bits at other places"
    ),
    ("20 losses, captured", torch.float32): Tolerance(1e-5, 0, "the same kernels, deterministic ones"),
    ("20 losses, captured", torch.bfloat16): Tolerance(1e-5, 0, "the same kernels, deterministic ones"),
    ("20 losses, captured", torch.float16): Tolerance(1e-5, 0, "the same kernels, deterministic ones"),
}


def assert_parity(actual: torch.Tensor, expected: torch.Tensor, op: str, precision: torch.dtype) -> None:
    """Assert that two tensors of one dtype and shape agree within the table's tolerance."""
    tolerance = TOLERANCES[op, precision]
    torch.testing.assert_close(actual, expected, rtol=tolerance.rtol, atol=tolerance.atol)


class GreyLevels(NamedTuple):
    """The accepted difference of images, in grey levels of 0 to 255: at most, and on average."""

    most: float
    mean: float
    reason: str


# Streamed images, beside Pillow: they are decoded and resized by other libraries. Smooth pictures with a
# little noise.
GREY_LEVELS = {
    "streamed, DALI's CPU backend": GreyLevels(
        12,
        0.3,
        "the same libjpeg-turbo, but colour is interpolated up to the edge of the box; "
        "resized without rounding in between",
    ),
    "streamed, DALI on the GPU": GreyLevels(
        48,
        1.5,
        "nvJPEG rounds its cosine transform differently, "
        "and repeats colour samples where libjpeg interpolates them",
    ),
}


# Operations of TrivialAugment in DALI, beside torchvision's: on noise, in which neighbours differ most.
OPERATION_LEVELS = {
    **dict.fromkeys(("identity", "posterize", "solarize"), GreyLevels(0, 0, "whole numbers")),
    **dict.fromkeys(("translate_x", "translate_y"), GreyLevels(0, 0, "copies of pixels")),
    **dict.fromkeys(
        ("shear_x", "shear_y", "rotate"),
        GreyLevels(2, 0.1, "places of pixels in float32, between which grey levels are interpolated"),
    ),
    **dict.fromkeys(
        ("brightness", "auto_contrast"),
        GreyLevels(1, 0.6, "DALI rounds to the nearest grey level, torchvision to the one below"),
    ),
    **dict.fromkeys(
        ("color", "contrast", "sharpness"),
        GreyLevels(2, 0.6, "as brightness, and torchvision also rounds the grey or blurred image"),
    ),
    "equalize": GreyLevels(0, 0, "OpenCV's table in both"),
}
