"""Compare the whitening stem with `F.conv2d` and `F.gelu` in float64: kernels, reference and operator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from kernels.whitening_stem.backward import launch_bias_gradient
from kernels.whitening_stem.forward import TILINGS, Tiling, launch_forward
from kernels.whitening_stem.op import whitening_stem
from kernels.whitening_stem.reference import bias_gradient_reference, whitening_stem_reference
from tests.gpus import DEVICE, NEEDS_GPU, USES_GPU, needs_gpu
from tests.parity.operators import assert_registered
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

Shape = tuple[int, int, int, int, int]
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Batch, channels, height, width, output channels. One pixel of output; several tiles a program and a part of
# one; 1 to 5 channels; output channels below a tile's, odd, of one tile and one more.
SHAPES = [(1, 3, 2, 2, 24), (3, 1, 2, 7, 8), (2, 2, 9, 5, 5), (3, 3, 13, 12, 24), (2, 5, 9, 8, 65)]


def random_case(shape: Shape, dtype: torch.dtype, further_channels: int = 0) -> Tensors:
    """Return images, weight, bias and the gradient by y, which has the further channels of y.

    Every dtype of this test holds the values exactly: the interpreter would truncate others.
    """
    batch_size, channels, height, width, out_channels = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).bfloat16().to(DEVICE)

    images = normal(batch_size, channels, height, width).to(dtype, memory_format=torch.channels_last)
    weight = normal(out_channels, channels, 2, 2).float().to(memory_format=torch.channels_last)
    dy = normal(batch_size, out_channels + further_channels, height - 1, width - 1)
    dy = dy.to(dtype, memory_format=torch.channels_last)
    return images, weight / 4, normal(out_channels).float(), dy


def expected(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dy: torch.Tensor) -> Any:
    """Return y and the gradient by the bias in float64."""
    leaf = bias.double().requires_grad_()
    y = functional.gelu(functional.conv2d(images.double(), weight.double(), leaf))
    return y.detach(), torch.autograd.grad(y, leaf, dy.double())[0]


def assert_results(y: torch.Tensor, dbias: torch.Tensor, case: Tensors) -> None:
    images, weight, bias, dy = case
    expected_y, expected_dbias = expected(images, weight, bias, dy[:, : len(weight)])
    assert y.dtype is dy.dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert y.shape == dy.shape
    assert not y[:, len(weight) :].any()
    y, dy = y[:, : len(weight)], dy[:, : len(weight)]
    assert dbias.dtype is bias.dtype
    assert_parity(y.double(), expected_y, "whitening stem y", y.dtype)
    scale = (dy.numel() // dy.shape[1]) ** -0.5
    assert_parity(dbias.double() * scale, expected_dbias * scale, "whitening stem dbias", torch.float32)


def assert_kernels(case: Tensors) -> None:
    images, weight, bias, dy = case
    y = launch_forward(images, weight, bias, dy.dtype, dy.shape[1])
    assert_results(y, launch_bias_gradient(dy, images, weight, bias), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels(shape: Shape, dtype: torch.dtype) -> None:
    assert_kernels(random_case(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_channels", "further_channels"), [(24, 8), (30, 40)])
def test_kernels_with_channels_of_zeros(out_channels: int, further_channels: int, dtype: torch.dtype) -> None:
    assert_kernels(random_case((3, 3, 9, 8, out_channels), dtype, further_channels))


@pytest.mark.parametrize("tiling", [Tiling(32, 1, 9), Tiling(256, 8, 1)])
def test_kernels_of_any_tiling(tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in TILINGS:
        monkeypatch.setitem(TILINGS, kernel, tiling)
    assert_kernels(random_case((3, 3, 13, 12, 24), torch.float16))


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(128, 3, 32, 32, 24), (33, 1, 28, 28, 8), (7, 3, 61, 59, 160)])
def test_large_kernels(shape: Shape, dtype: torch.dtype) -> None:
    case = random_case(shape, dtype)
    assert_kernels(case)
    images, weight, bias, dy = case
    first, second = (launch_bias_gradient(dy, images, weight, bias) for _ in range(2))
    assert torch.equal(first, second), "two runs differ: a race"


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
def test_overflow_is_not_hidden(value: float) -> None:
    images, weight, bias, dy = random_case((2, 3, 4, 4, 16), torch.float16)
    dy[1, 5, 2, 2] = value
    dbias = launch_bias_gradient(dy, images, weight, bias)
    assert (~dbias.isfinite()).tolist() == [channel == 5 for channel in range(16)]


@pytest.mark.parametrize("further_channels", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference(dtype: torch.dtype, further_channels: int) -> None:
    case = random_case((2, 2, 5, 3, 7), dtype, further_channels)
    images, weight, bias, dy = case
    dbias = bias_gradient_reference(dy, images, weight, bias)
    y = whitening_stem_reference(images, weight, bias, channels=dy.shape[1])
    assert_results(y, dbias, case)


def run_operator(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dy: torch.Tensor,
    function: Callable[..., Any] = whitening_stem,
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = bias.clone().requires_grad_()
    y = function(images, weight, leaf, dy.shape[1])
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


@pytest.mark.parametrize("further_channels", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operator(dtype: torch.dtype, further_channels: int) -> None:
    case = random_case((2, 3, 5, 3, 7), dtype, further_channels)
    assert_results(*run_operator(*case), case)


@pytest.mark.parametrize("image_dtype", [torch.float32, torch.float16])
def test_operator_under_autocast(image_dtype: torch.dtype) -> None:
    case = random_case((2, 3, 5, 3, 7), torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y, dbias = run_operator(case[0].to(image_dtype), *case[1:])
    assert_results(y, dbias, case)


def test_operator_takes_any_strides() -> None:
    images, weight, bias, dy = random_case((2, 3, 5, 3, 7), torch.float16)
    strided = (
        images.contiguous().mT.contiguous().mT,
        weight.mT.contiguous().mT,
        bias,
        dy[:1].expand_as(dy),
    )
    assert_results(*run_operator(*strided), strided)


def test_a_bias_without_gradient_has_none() -> None:
    images, weight, bias, _ = random_case((2, 3, 5, 3, 7), torch.float16)
    assert not whitening_stem(images, weight, bias).requires_grad


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
def test_operator_compiles_into_one_graph(backend: str) -> None:
    images, weight, bias, dy = random_case((2, 3, 5, 3, 7), torch.float16)

    def step(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, channels: int) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return 2 * whitening_stem(images, weight, bias, channels)

    case = images, weight, bias, dy.bfloat16()
    compiled = run_operator(*case, torch.compile(step, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled, run_operator(*case, step), rtol=0, atol=0)


# `opcheck` itself warns
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_are_registered_soundly(dtype: torch.dtype) -> None:
    images, weight, bias, dy = random_case((2, 3, 5, 3, 7), dtype)
    forward = images, weight, bias.clone().requires_grad_(), dtype, 9
    assert_registered(torch.ops.quickres.whitening_stem.default, forward)
    dy = functional.pad(dy, (0, 0, 0, 0, 0, 2)).contiguous(memory_format=torch.channels_last)
    assert_registered(torch.ops.quickres.whitening_stem_bias_gradient.default, (dy, images, weight, bias))


IMAGES, WEIGHT, BIAS = torch.zeros(2, 3, 4, 4), torch.zeros(8, 3, 2, 2), torch.zeros(8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": torch.zeros(2, 3, 4)}, "images must be"),
        ({"images": torch.zeros(2, 17, 4, 4)}, "images must be"),
        ({"images": torch.zeros(2, 3, 1, 4)}, "images must be"),
        ({"images": IMAGES.double()}, "images must be"),
        ({"images": IMAGES.clone().requires_grad_()}, "images must not require"),
        ({"weight": torch.zeros(8, 1, 2, 2)}, "weight must be"),
        ({"weight": torch.zeros(8, 3, 3, 3)}, "weight must be"),
        ({"weight": WEIGHT.clone().requires_grad_()}, "weight must not require"),
        ({"bias": torch.zeros(9)}, "bias must be"),
        ({"bias": BIAS.double()}, "bias must be"),
        ({"channels": 7}, "channels must be at least 8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whitening_stem(**{"images": IMAGES, "weight": WEIGHT, "bias": BIAS, **changed})


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of NumPy, in the interpreter
def test_gelu_of_any_value() -> None:
    """The bias alone decides the value under the GELU."""
    bias = torch.cat([torch.linspace(-14, 14, 127), torch.tensor([1e-3, -1e-3, 1e4, -1e4, 1e30])]).to(DEVICE)
    images, weight = torch.zeros(1, 3, 2, 2, device=DEVICE), torch.zeros(len(bias), 3, 2, 2, device=DEVICE)
    y = launch_forward(images, weight, bias, torch.float32, len(bias))
    expected_y = functional.gelu(bias.double()).view(1, -1, 1, 1)
    assert_parity(y.double(), expected_y, "whitening stem y", torch.float32)
    dbias = launch_bias_gradient(torch.ones_like(y), images, weight, bias)
    leaf = bias.double().requires_grad_()
    (expected_dbias,) = torch.autograd.grad(functional.gelu(leaf).sum(), leaf)
    assert_parity(dbias.double(), expected_dbias, "whitening stem dbias", torch.float32)
