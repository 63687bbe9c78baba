"""Compare the stem's convolution with `F.conv2d` in float64: the kernels, the reference and the operator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from kernels.stem_conv.backward import launch_weight_gradient
from kernels.stem_conv.forward import launch_forward
from kernels.stem_conv.op import stem_conv
from kernels.stem_conv.reference import stem_conv_reference, stem_conv_weight_gradient_reference
from kernels.stem_tiles import TILINGS, Tiling
from tests.gpus import DEVICE, NEEDS_GPU, USES_GPU, needs_gpu
from tests.parity.operators import assert_registered
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

Pair = tuple[torch.Tensor, torch.Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Batch, channels, height, width, output channels. One pixel and one row; several tiles a program and a part
# of one; 1 to 3 channels; output channels below a tile's, odd, of one tile and one more.
SHAPES = [(1, 3, 1, 1, 64), (3, 1, 1, 7, 16), (2, 2, 9, 5, 5), (3, 3, 13, 12, 64), (2, 3, 9, 8, 65)]


def random_case(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, weight_dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images, weight and the gradient by y.

    Every dtype of this test holds the values exactly: the interpreter would truncate others.
    """
    batch_size, channels, height, width, out_channels = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).bfloat16().to(DEVICE)

    images = normal(batch_size, channels, height, width).to(dtype, memory_format=torch.channels_last)
    dy = normal(batch_size, out_channels, height, width).to(dtype, memory_format=torch.channels_last)
    weight = normal(out_channels, channels, 3, 3).to(weight_dtype, memory_format=torch.channels_last)
    return images, weight, dy


def expected(images: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> Pair:
    """Return y and the gradient by the weight in float64."""
    leaf = weight.double().requires_grad_()
    y = functional.conv2d(images.double(), leaf, padding=1)
    return y.detach(), torch.autograd.grad(y, leaf, dy.double())[0]


def assert_results(
    y: torch.Tensor, dweight: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor
) -> None:
    expected_y, expected_dweight = expected(images, weight, dy)
    assert y.dtype is dy.dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert dweight.dtype is weight.dtype and dweight.is_contiguous(memory_format=torch.channels_last)
    assert_parity(y.double(), expected_y, "stem conv y", y.dtype)
    assert_parity(dweight.double(), expected_dweight, "stem conv dweight", dweight.dtype)


def assert_kernels(images: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> None:
    y = launch_forward(images, weight, dy.dtype)
    assert_results(y, launch_weight_gradient(dy, images, weight), images, weight, dy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    assert_kernels(*random_case(shape, dtype))


@pytest.mark.parametrize("tiling", [Tiling(32, 1, 9, 1, None), Tiling(256, 8, 1, 2, 255)])
def test_kernels_of_any_tiling(tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("forward", "weight gradient"):
        monkeypatch.setitem(TILINGS, kernel, tiling)
    assert_kernels(*random_case((3, 3, 13, 12, 64), torch.float16))


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(128, 3, 32, 32, 64), (33, 1, 28, 28, 32), (7, 3, 61, 59, 160)])
def test_large_kernels(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    images, weight, dy = random_case(shape, dtype)
    assert_kernels(images, weight, dy)
    first, second = (launch_weight_gradient(dy, images, weight) for _ in range(2))
    assert torch.equal(first, second), "two runs differ: a race"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_of_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    assert_kernels(*random_case((2, 3, 6, 5, 16), dtype, dtype))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
def test_overflow_is_not_hidden(value: float) -> None:
    images, weight, dy = random_case((2, 3, 4, 4, 16), torch.float16)
    dy[1, 5, 3, 2] = value
    dweight = launch_weight_gradient(dy, images, weight)
    assert (~dweight.isfinite()).flatten(1).any(1).tolist() == [channel == 5 for channel in range(16)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference(dtype: torch.dtype) -> None:
    images, weight, dy = random_case((2, 2, 5, 3, 7), dtype)
    assert_results(
        stem_conv_reference(images, weight),
        stem_conv_weight_gradient_reference(dy, images, weight),
        images,
        weight,
        dy,
    )


def run_operator(
    images: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor, function: Callable[..., Any] = stem_conv
) -> Pair:
    leaf = weight.clone().requires_grad_()
    y = function(images, leaf)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_operator(dtype: torch.dtype) -> None:
    case = random_case((2, 3, 5, 3, 7), dtype)
    assert_results(*run_operator(*case), *case)


@pytest.mark.parametrize("image_dtype", [torch.float32, torch.float16])
def test_operator_under_autocast(image_dtype: torch.dtype) -> None:
    images, weight, dy = random_case((2, 3, 5, 3, 7), torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y, dweight = run_operator(images.to(image_dtype), weight, dy)
    assert_results(y, dweight, images, weight, dy)


def test_operator_takes_any_strides() -> None:
    images, weight, dy = random_case((2, 3, 5, 3, 7), torch.float16)
    strided = images.contiguous().mT.contiguous().mT, weight.mT.contiguous().mT, dy[:1].expand_as(dy)
    assert_results(*run_operator(*strided), *strided)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
def test_operator_compiles_into_one_graph(backend: str) -> None:
    case = random_case((2, 3, 5, 3, 7), torch.float16)

    def step(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return 2 * stem_conv(images, weight)

    case = (*case[:2], case[2].bfloat16())
    compiled = run_operator(*case, torch.compile(step, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled, run_operator(*case, step), rtol=0, atol=0)


# `opcheck` itself warns
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_are_registered_soundly(dtype: torch.dtype) -> None:
    images, weight, dy = random_case((2, 3, 5, 3, 7), dtype)
    assert_registered(torch.ops.quickres.stem_conv.default, (images, weight.requires_grad_(), dtype))
    assert_registered(torch.ops.quickres.stem_conv_weight_gradient.default, (dy, images, weight.detach()))


@pytest.mark.parametrize(
    ("images", "weight", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(8, 3, 3, 3), "images must be"),
        (torch.zeros(2, 4, 4, 4), torch.zeros(8, 4, 3, 3), "images must be"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(8, 3, 3, 3), "images must be"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.zeros(8, 3, 3, 3), "images must be"),
        (torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(8, 3, 3, 3), "must not require"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(8, 1, 3, 3), "weight must be"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(8, 3, 7, 7), "weight must be"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(8, 3, 3, 3, dtype=torch.float64), "weight must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    images: torch.Tensor, weight: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stem_conv(images, weight)
