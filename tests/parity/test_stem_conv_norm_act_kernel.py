"""Compare the stem's convolution, batch norm and ReLU with PyTorch in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional

from kernels.arguments import Norm
from kernels.stem_conv_norm_act.backward import launch_backward
from kernels.stem_conv_norm_act.forward import launch_forward
from kernels.stem_conv_norm_act.op import stem_conv_norm_act, stem_conv_norm_act_twice
from kernels.stem_conv_norm_act.reference import (
    backward_reference,
    forward_reference,
    stem_conv_norm_act_reference,
)
from kernels.stem_tiles import TILINGS, Tiling
from tests.gpus import DEVICE, NEEDS_GPU, USES_GPU, needs_gpu
from tests.parity.operators import assert_registered, differentiate
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MOMENTUM, EPS = 0.1, 1e-5
LEAVES = ("weight", "norm_weight", "norm_bias")
# Batch, channels, height, width, output channels. One row; several tiles a program and a part of one; 1 to 3
# channels; output channels below a tile's, odd, and one more than a tile's. One and two uses of y.
SHAPES = [((3, 1, 1, 7, 16), 1), ((2, 2, 9, 5, 5), 2), ((3, 3, 13, 12, 32), 2), ((2, 3, 5, 8, 65), 1)]
Results = dict[str, torch.Tensor]


class Case(NamedTuple):
    images: torch.Tensor
    weight: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def norm(self) -> Norm:
        return Norm(*self[2:])

    def clone(self, dtype: torch.dtype | None = None) -> "Case":
        """Return a copy, in another dtype if one is given, whose running statistics can be changed."""
        return Case(*(each.to(dtype or each.dtype, copy=True) for each in self))

    def running(self) -> Results:
        return {"running_mean": self.running_mean, "running_var": self.running_var}


def random_case(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, num_gradients: int = 1
) -> tuple[Case, list[torch.Tensor]]:
    """Return arguments with values that every dtype here holds, and the gradients of the uses of y."""
    batch_size, channels, height, width, out_channels = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).bfloat16().float().to(DEVICE)

    images = normal(batch_size, channels, height, width).to(dtype, memory_format=torch.channels_last)
    weight = normal(out_channels, channels, 3, 3).to(memory_format=torch.channels_last)
    vectors = [normal(out_channels) for _ in range(4)]
    case = Case(images, weight, vectors[0], vectors[1], vectors[2], vectors[3].abs())
    # Quarters up to 4, whose sums of two are exact in every dtype; 0 where float32 may have z on the other
    # side of 0.
    decided = under_relu(case.clone(torch.float64)).abs() > 1e-4
    gradients = []
    for _ in range(num_gradients):
        quarters = torch.randint(-16, 17, decided.shape, generator=generator).to(DEVICE) / 4
        gradients.append(torch.where(decided, quarters, 0).to(dtype, memory_format=torch.channels_last))
    return case, gradients


def under_relu(case: Case) -> torch.Tensor:
    images, weight, norm_weight, norm_bias, running_mean, running_var = case
    x = functional.conv2d(images, weight, padding=1)
    return functional.batch_norm(x, running_mean, running_var, norm_weight, norm_bias, True, MOMENTUM, EPS)


def assert_results(actual: Results, case: Case, gradients: list[torch.Tensor]) -> None:
    wide = case.clone(torch.float64)
    leaves = [getattr(wide, name).requires_grad_() for name in LEAVES]
    y = under_relu(wide).relu()
    by_leaf = torch.autograd.grad(y, leaves, torch.stack([each.double() for each in gradients]).sum(0))
    results = (
        {"y": y.detach()}
        | wide.running()
        | {f"d{name}": value for name, value in zip(LEAVES, by_leaf, strict=True)}
    )
    assert actual.keys() == results.keys()
    for name, result in results.items():
        value = actual[name]
        assert value.dtype is (gradients[0].dtype if name == "y" else torch.float32)
        assert value.ndim == 1 or value.is_contiguous(memory_format=torch.channels_last)
        op = "gradients" if name.startswith("d") else "statistics" if "running" in name else name
        assert_parity(value.double(), result, f"stem {op}", value.dtype)


def run_pair(
    forward: Callable[..., Any], backward: Callable[..., Any], case: Case, gradients: list[torch.Tensor]
) -> Results:
    """Return what a forward and a backward function, kernels or reference, compute."""
    copy = case.clone()
    y, statistics, moments = forward(copy, gradients[0].dtype)
    gradient, second_gradient = [*gradients, None][:2]
    by_leaf = backward(gradient, second_gradient, *copy[:4], statistics, moments)
    return (
        {"y": y} | copy.running() | {f"d{name}": value for name, value in zip(LEAVES, by_leaf, strict=True)}
    )


def kernels_forward(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return launch_forward(case.images, case.weight, case.norm(), dtype, MOMENTUM, EPS)


def reference_forward(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return forward_reference(*case, dtype, MOMENTUM, EPS)


def assert_kernels(case: Case, gradients: list[torch.Tensor]) -> Results:
    results = run_pair(kernels_forward, launch_backward, case, gradients)
    assert_results(results, case, gradients)
    return results


def run_operator(
    case: Case, gradients: list[torch.Tensor], transform: Any = lambda function: function
) -> Results:
    """Return what the differentiable function and autograd compute; `transform` may compile the function."""
    copy = case.clone()
    leaves = {name: getattr(copy, name).requires_grad_() for name in LEAVES}
    functions = stem_conv_norm_act, stem_conv_norm_act_twice
    arguments = copy.images, copy.weight, copy.norm(), MOMENTUM, EPS
    return differentiate(functions, arguments, leaves, gradients, transform) | copy.running()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "num_gradients"), SHAPES)
def test_kernels(shape: tuple[int, int, int, int, int], num_gradients: int, dtype: torch.dtype) -> None:
    assert_kernels(*random_case(shape, dtype, num_gradients))


@pytest.mark.parametrize("tiling", [Tiling(32, 1, 9, 1, None), Tiling(256, 8, 1, 2, 255)])
def test_kernels_of_any_tiling(tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("moments", "apply", "gradient sums"):
        monkeypatch.setitem(TILINGS, kernel, tiling)
    assert_kernels(*random_case((3, 3, 13, 12, 32), torch.float16, 2))


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(128, 3, 32, 32, 64), (33, 1, 28, 28, 32), (7, 3, 61, 59, 160)])
@pytest.mark.parametrize("num_gradients", [1, 2])
def test_large_kernels(num_gradients: int, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    case, gradients = random_case(shape, dtype, num_gradients)
    results = assert_kernels(case, gradients)
    repeated = run_pair(kernels_forward, launch_backward, case, gradients)
    assert all(torch.equal(results[name], repeated[name]) for name in results), "two runs differ: a race"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_that_suppresses_what_neighbours_have_in_common(dtype: torch.dtype) -> None:
    """Take smooth images and a Laplacian: the variance of x is a difference of much larger moments."""
    case, _ = random_case((4, 3, 16, 16, 16), dtype)
    smooth = functional.interpolate(
        torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), (16, 16), mode="bicubic"
    )
    case.images.copy_(smooth)
    case.weight.copy_(torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]) / 16)
    statistics = kernels_forward(case.clone(), dtype)[1]
    var, mean = torch.var_mean(
        functional.conv2d(case.images.double(), case.weight.double(), padding=1), (0, 2, 3), correction=0
    )
    assert (var < 0.01 * case.images.double().var()).all()
    assert_parity(statistics[0].double(), mean, "stem statistics", torch.float32)
    assert_parity(statistics[1].double(), (var + EPS).rsqrt(), "stem deviation, smooth images", torch.float32)


def test_constant_images() -> None:
    """Take black images, for which the deviation of x is exactly 0."""
    case, gradients = random_case((2, 3, 6, 6, 16), torch.float16)
    case.images.zero_()
    results = run_pair(kernels_forward, launch_backward, case, gradients)
    torch.testing.assert_close(
        results["y"], case.norm_bias.relu().half()[:, None, None].expand_as(results["y"]), rtol=0, atol=0
    )
    assert not results["dweight"].any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_overflow_is_not_hidden(value: float) -> None:
    case, gradients = random_case((2, 3, 4, 4, 16), torch.float16)
    # a place with a positive output, so that the ReLU lets the gradient pass
    place = (under_relu(case.clone(torch.float64))[:, 5] > 0).nonzero()[0]
    gradients[0][place[0], 5, place[1], place[2]] = value
    results = run_pair(kernels_forward, launch_backward, case, gradients)
    assert (~results["dweight"].isfinite()).flatten(1).any(1).tolist() == [
        channel == 5 for channel in range(16)
    ]
    case.images[1, 2, 3, 3] = value
    results = run_pair(kernels_forward, launch_backward, case, gradients)
    assert not results["y"].isfinite().any() and not results["running_var"].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_gradients", [1, 2])
def test_reference(num_gradients: int, dtype: torch.dtype) -> None:
    case, gradients = random_case((2, 2, 5, 3, 7), dtype, num_gradients)
    assert_results(run_pair(reference_forward, backward_reference, case, gradients), case, gradients)
    y = stem_conv_norm_act_reference(case.images, case.weight, case.clone().norm(), MOMENTUM, EPS)
    assert_parity(y.double(), under_relu(case.clone(torch.float64)).relu(), "stem y", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments(dtype: torch.dtype) -> None:
    """Compare the moments of the kernels with those of the reference, all but those of the padding."""
    case, _ = random_case((2, 2, 5, 3, 7), dtype)
    actual, expected = (forward(case.clone(), dtype)[2] for forward in (kernels_forward, reference_forward))
    assert_parity(actual[:19, :18].double(), expected[:19, :18].double(), "stem statistics", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_gradients", [1, 2])
def test_operator(num_gradients: int, dtype: torch.dtype) -> None:
    case, gradients = random_case((2, 3, 5, 3, 7), dtype, num_gradients)
    assert_results(run_operator(case, gradients), case, gradients)


def test_operator_takes_any_strides_and_autocast() -> None:
    case, gradients = random_case((2, 3, 5, 3, 7), torch.bfloat16)
    strided = case._replace(
        images=case.images.half().contiguous().mT.contiguous().mT, weight=case.weight.mT.contiguous().mT
    )
    with torch.autocast(DEVICE.type, torch.bfloat16):
        results = run_operator(strided, [gradients[0][:1].expand_as(gradients[0])])
    assert_results(results, case, [gradients[0][:1].expand_as(gradients[0])])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
def test_operator_compiles_into_one_graph(backend: str) -> None:
    case, gradients = random_case((2, 3, 5, 3, 7), torch.float16, 2)
    compiled = run_operator(
        case, gradients, lambda function: torch.compile(function, fullgraph=True, backend=backend)
    )
    torch.testing.assert_close(compiled, run_operator(case, gradients), rtol=0, atol=0)


def test_operators_are_registered_soundly() -> None:
    case, (gradient,) = random_case((2, 3, 5, 3, 7), torch.float16)
    arguments = (*case, torch.float16, MOMENTUM, EPS)
    assert_registered(torch.ops.quickres.stem_conv_norm_act.default, arguments)
    _, statistics, moments = torch.ops.quickres.stem_conv_norm_act(*arguments)
    for second in (None, gradient):
        assert_registered(
            torch.ops.quickres.stem_conv_norm_act_backward.default,
            (gradient, second, *case[:4], statistics, moments),
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": torch.zeros(4, 4, 2, 2)}, "images must be"),
        ({"images": torch.zeros(1, 3, 1, 1)}, "more than one pixel"),
        ({"images": torch.zeros(4, 3, 2, 2, requires_grad=True)}, "must not require"),
        ({"weight": torch.zeros(8, 3, 7, 7)}, "weight must be"),
        ({"norm_weight": torch.zeros(9)}, "norm.weight must be"),
        ({"running_var": torch.zeros(16)[::2]}, "norm.running_var must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: Results, message: str) -> None:
    case = Case(
        torch.zeros(4, 3, 2, 2), torch.zeros(8, 3, 3, 3), *(torch.zeros(8) for _ in range(4))
    )._replace(**changed)
    with pytest.raises(ValueError, match=message):
        stem_conv_norm_act(case.images, case.weight, case.norm())
