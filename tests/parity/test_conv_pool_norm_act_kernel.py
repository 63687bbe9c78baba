"""Compare convolution, max-pool, norm and activation, in one op, with PyTorch in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from kernels.arguments import Activation, Norm
from kernels.conv_pool_norm_act import backward as backward_kernels
from kernels.conv_pool_norm_act import forward as forward_kernels
from kernels.conv_pool_norm_act import op
from kernels.conv_pool_norm_act.backward import launch_backward, launch_weight_gradient
from kernels.conv_pool_norm_act.forward import Tiling, launch_forward
from kernels.conv_pool_norm_act.reference import (
    backward_reference,
    conv_pool_norm_act_reference,
    forward_reference,
)
from tests.gpus import DEVICE, NEEDS_GPU, ON_GPU, USES_GPU, needs_gpu
from tests.parity.copies import copy_case
from tests.parity.operators import assert_registered, capture, differentiate
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

Shape = tuple[int, int, int, int, int]
DTYPES = [torch.float16, torch.bfloat16]
MOMENTUM, EPS = 0.1, 1e-5
VARIANTS: list[tuple[Activation, int]] = [("none", 1), ("silu", 1), ("gelu", 2)]  # activation, gradients
# Batch, channels, height, width, output channels. One window an image; odd and even heights and widths; all
# channels of a tile, fewer, and output channels of more than one tile; several tiles a program, the last one
# in part.
SHAPES = [(5, 3, 2, 2, 5), (2, 32, 5, 8, 64), (2, 24, 6, 3, 72), (1, 5, 21, 20, 16)]
MANY_TILES = (3, 8, 21, 20, 16)
TILINGS = [backward_kernels.TILING, Tiling(16, 64, 4, 1, 1), Tiling(32, 128, 8, 1, 3)]
FORWARD_TILINGS = [*forward_kernels.TILINGS.values(), Tiling(16, 64, 4, 3, 1), Tiling(64, 128, 8, 1, 2)]
LARGE = [(128, 32, 31, 31, 64), (96, 32, 31, 31, 128), (64, 32, 32, 32, 64), (77, 24, 30, 33, 100)]
Results = dict[str, torch.Tensor]


class Case(NamedTuple):
    x: torch.Tensor
    filters: torch.Tensor  # float32 with float32 norms, as in training
    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    gradients: list[torch.Tensor]
    activation: Activation

    def norm(self) -> Norm:
        return Norm(self.weight, self.bias, self.running_mean, self.running_var)

    def clone(self, dtype: torch.dtype | None = None) -> "Case":
        return copy_case(self, dtype)


def quarters(*shape: int, limit: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    values = torch.randint(-limit, limit + 1, shape, generator=generator) / 4
    return values.to(dtype).to(DEVICE, memory_format=torch.channels_last)


def random_case(
    shape: Shape, dtype: torch.dtype, activation: Activation = "silu", num_gradients: int = 1
) -> Case:
    """Return a case whose convolution is exact in every dtype, so that all agree on the maxima."""
    batch_size, channels, height, width, out_channels = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = quarters(batch_size, channels, height, width, limit=4, generator=generator, dtype=dtype)
    # at most 16 taps are not 0: no sum exceeds 16, and bfloat16 holds all quarters up to 64
    filters = torch.zeros(out_channels, channels * 9)
    for _ in range(16):
        taps = torch.randint(channels * 9, (out_channels, 1), generator=generator)
        filters.scatter_(1, taps, torch.randint(-1, 2, taps.shape, generator=generator).float())
    weight, bias, mean, var = (torch.randn(out_channels, generator=generator).to(DEVICE) for _ in range(4))
    pooled = batch_size, out_channels, height // 2, width // 2
    gradients = [quarters(*pooled, limit=16, generator=generator, dtype=dtype) for _ in range(num_gradients)]
    filters = filters.view(out_channels, channels, 3, 3).to(DEVICE, memory_format=torch.channels_last)
    return Case(x, filters, weight, bias, mean, var.abs(), gradients, activation)


def expected(case: Case) -> Results:
    """Return y, the running statistics and all gradients in float64."""
    wide = case.clone(torch.float64)
    leaves = {name: getattr(wide, name).requires_grad_() for name in ("filters", "weight", "bias")}
    pooled = functional.max_pool2d(functional.conv2d(wide.x, wide.filters, padding=1), 2)
    running = wide.running_mean, wide.running_var
    z = functional.batch_norm(pooled, *running, wide.weight, wide.bias, True, MOMENTUM, EPS)
    y = {"none": lambda z: z, "silu": functional.silu, "gelu": functional.gelu}[case.activation](z)
    gradient = torch.stack([each.double() for each in case.gradients]).sum(0)
    by_leaf = torch.autograd.grad(y, list(leaves.values()), gradient)
    results = {"y": y.detach(), "running_mean": running[0], "running_var": running[1]}
    return results | {f"d{k}": v for k, v in zip(leaves, by_leaf, strict=True)}


def assert_results(actual: Results, case: Case) -> None:
    results = expected(case)
    num_windows = results["y"].numel() // results["y"].shape[1]
    for name, value in actual.items():
        result, dtype = results[name], case.x.dtype
        assert value.dtype is (dtype if name == "y" else torch.float32)
        if name == "dfilters":  # as rounding errors of a sum grow
            value, result = value.double() * num_windows**-0.5, result * num_windows**-0.5
            assert_parity(value, result, "pooled conv dweight", dtype)
        elif name in ("dweight", "dbias") and len(case.gradients) == 2:
            value, result = value.double() * num_windows**-0.5, result * num_windows**-0.5
            assert_parity(value, result, f"batch norm {name}, rounded dz", dtype)
        else:
            kind = "statistics" if "running" in name else name
            assert_parity(value.double(), result, f"batch norm {kind}", value.dtype)


def kernels(x: torch.Tensor, filters: torch.Tensor, *arguments: Any) -> Any:
    """Run the forward kernels; the arguments are those of the operator."""
    *norm, activation, momentum, eps = arguments
    return launch_forward(x, filters, Norm(*norm), activation, momentum, eps)


def run_forward(function: Callable[..., Any], case: Case) -> Results:
    """Return all that a forward function, of kernels or the reference, writes."""
    copy = case.clone()
    results = function(copy.x, copy.filters, *copy.norm(), copy.activation, MOMENTUM, EPS)
    running = {"running_mean": copy.running_mean, "running_var": copy.running_var}
    return dict(zip(("y", "pooled", "places", "statistics"), results, strict=True)) | running


def assert_forward(case: Case) -> None:
    """Compare the kernels with the reference and with float64. The convolution must be exact."""
    results, reference = run_forward(kernels, case), run_forward(forward_reference, case)
    for name in ("pooled", "places"):
        torch.testing.assert_close(results[name], reference[name], rtol=0, atol=0, equal_nan=True)
    assert results["y"].is_contiguous(memory_format=torch.channels_last)
    assert results["pooled"].is_contiguous(memory_format=torch.channels_last)
    assert_results({name: results[name] for name in ("y", "running_mean", "running_var")}, case)
    var, mean = torch.var_mean(results["pooled"].double(), (0, 2, 3), correction=0)
    exact = torch.stack([mean, (var + EPS).rsqrt()])
    assert_parity(results["statistics"].double(), exact, "batch norm statistics", torch.float32)
    repeated = run_forward(kernels, case)  # a race would make a second run differ
    assert all(torch.equal(results[name], repeated[name]) for name in results)


def run_backward(function: Callable[..., Any], case: Case) -> Results:
    """Return the gradients that a backward function, of kernels or the reference, computes."""
    copy = case.clone()
    forward = forward_reference(copy.x, copy.filters, *copy.norm(), "none", MOMENTUM, EPS)
    _, pooled, places, statistics = forward
    saved = pooled, places, copy.weight, copy.bias, statistics
    by_leaf = function(*[*copy.gradients, None][:2], *saved, copy.activation, copy.x)
    return dict(zip(("dfilters", "dweight", "dbias"), by_leaf, strict=True))


def run_operator(case: Case, transform: Any = lambda function: function) -> Results:
    """Return what the differentiable function and autograd compute; `transform` may compile the function."""
    copy = case.clone()
    leaves = {name: getattr(copy, name).requires_grad_() for name in ("filters", "weight", "bias")}
    functions = op.conv_pool_norm_act, op.conv_pool_norm_act_twice
    arguments = copy.x, copy.filters, copy.norm(), copy.activation, MOMENTUM, EPS
    running = {"running_mean": copy.running_mean, "running_var": copy.running_var}
    return differentiate(functions, arguments, leaves, copy.gradients, transform) | running


def assert_exact_weight_gradient(shape: Shape, dtype: torch.dtype) -> None:
    """Compare the product alone with its definition: of quarters, all sums are exact."""
    batch_size, channels, height, width, out_channels = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = quarters(batch_size, channels, height, width, limit=8, generator=generator, dtype=dtype)
    rows, columns = height // 2, width // 2
    g = quarters(batch_size, out_channels, rows, columns, limit=8, generator=generator, dtype=dtype)
    chosen = torch.randint(4, (batch_size * rows * columns, -(-out_channels // 4), 4), generator=generator)
    packed = (chosen << torch.tensor([0, 2, 4, 6])).sum(2).to(DEVICE, torch.uint8)
    places = chosen.flatten(1)[:, :out_channels].view(batch_size, rows, columns, -1).permute(0, 3, 1, 2)
    dense = torch.zeros(batch_size, out_channels, height, width, dtype=torch.float64, device=DEVICE)
    for place in range(4):
        window = dense[:, :, place // 2 : 2 * rows : 2, place % 2 : 2 * columns : 2]
        window += torch.where(places.to(DEVICE) == place, g.double(), 0)
    shape_of_weight = (out_channels, channels, 3, 3)
    exact = conv2d_weight(x.double(), shape_of_weight, dense, padding=1)
    for _ in range(2):  # a race would make a second run differ
        dweight = launch_weight_gradient(g, packed, x)
        assert dweight.shape == shape_of_weight and dweight.dtype is torch.float32
        assert torch.equal(dweight.double(), exact)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradient_is_exact_for_quarters(
    shape: Shape, tiling: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward_kernels, "TILING", tiling)
    assert_exact_weight_gradient(shape, torch.float16)


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE)
def test_large_weight_gradient_is_exact_for_quarters(
    shape: Shape, dtype: torch.dtype, tiling: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward_kernels, "TILING", tiling)
    assert_exact_weight_gradient(shape, dtype)


@pytest.mark.parametrize("tiling", FORWARD_TILINGS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, MANY_TILES])
def test_forward_kernels_of_any_size_and_tiling(
    shape: Shape, tiling: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_kernels, "TILINGS", dict.fromkeys(forward_kernels.TILINGS, tiling))
    assert_forward(random_case(shape, torch.float16))


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("tiling", FORWARD_TILINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE)
def test_large_forward_kernels(
    shape: Shape, dtype: torch.dtype, tiling: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_kernels, "TILINGS", dict.fromkeys(forward_kernels.TILINGS, tiling))
    assert_forward(random_case(shape, dtype, "gelu"))


@pytest.mark.parametrize("shape", [(2, 8, 7, 6, 16), pytest.param((512, 32, 31, 31, 64), marks=NEEDS_GPU)])
def test_the_forward_kernel_rounds_the_weight_and_the_output_of_the_convolution(shape: Shape) -> None:
    case = random_case(shape, torch.float16)
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(case.filters.shape, generator=generator).to(DEVICE) / 10
    case = case._replace(filters=filters.contiguous(memory_format=torch.channels_last))
    results = run_forward(kernels, case)
    rounded = run_forward(kernels, case._replace(filters=case.filters.half()))
    assert all(torch.equal(results[name], rounded[name]) for name in results)
    convolved = functional.conv2d(case.x.double(), case.filters.half().double(), padding=1)
    exact = functional.max_pool2d(convolved, 2)
    assert_parity(results["pooled"].double(), exact, "pooled conv", torch.float16)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinite_values_and_nan_as_in_pytorch(value: float) -> None:
    case = random_case((2, 8, 6, 7, 16), torch.float16, "none")
    case.x[1, 3, 2, 2] = value
    filters = torch.where(case.filters == 0, 1.0, case.filters)  # no 0 times infinity
    case = case._replace(filters=filters)
    results, reference = (run_forward(function, case) for function in (kernels, forward_reference))
    for name in ("pooled", "places"):
        torch.testing.assert_close(results[name], reference[name], rtol=0, atol=0, equal_nan=True)
    overflown = results["pooled"].isfinite().logical_not()
    assert overflown.any() and not overflown[0].any()
    bad = overflown.any(0).any(1).any(1)
    assert torch.equal(results["running_var"].isfinite(), ~bad)


def test_the_variance_of_channels_far_from_0() -> None:
    case = random_case((13, 8, 12, 14, 16), torch.float16, "none")
    case.x.add_(16)
    case.filters.zero_()[:, :, 1, 1] = 1  # so that the border is like the rest: sums of 8 values, near 128
    results = run_forward(kernels, case)
    var, mean = torch.var_mean(results["pooled"].double(), (0, 2, 3), correction=0)
    assert (mean.abs() > 30 * var.sqrt()).all()
    mean_of_kernel, deviation = results["statistics"].double()
    assert_parity(mean_of_kernel, mean, "batch norm shifted mean", torch.float32)
    assert_parity(deviation, (var + EPS).rsqrt(), "batch norm shifted deviation", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "num_gradients"), VARIANTS)
def test_kernels(activation: Activation, num_gradients: int, dtype: torch.dtype) -> None:
    case = random_case((3, 6, 7, 4, 8), dtype, activation, num_gradients)
    assert_forward(case)
    assert_results(run_backward(launch_backward, case), case)


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "num_gradients"), VARIANTS)
@pytest.mark.parametrize("shape", LARGE)
def test_large_operator(shape: Shape, activation: Activation, num_gradients: int, dtype: torch.dtype) -> None:
    case = random_case(shape, dtype, activation, num_gradients)
    assert_results(run_operator(case), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "num_gradients"), VARIANTS)
def test_reference_and_operator(activation: Activation, num_gradients: int, dtype: torch.dtype) -> None:
    case = random_case((3, 6, 7, 4, 8), dtype, activation, num_gradients)
    if num_gradients == 1:  # the kernels round dz, the reference does not
        assert_results(run_backward(backward_reference, case), case)
    assert_results(run_operator(case), case)
    copy = case.clone()
    y = conv_pool_norm_act_reference(copy.x, copy.filters, copy.norm(), activation, MOMENTUM, EPS)
    assert_parity(y.double(), expected(case)["y"], "batch norm y", dtype)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
@pytest.mark.parametrize("num_gradients", [1, 2])
def test_operator_compiles_into_one_graph(num_gradients: int, backend: str) -> None:
    case = random_case((3, 5, 5, 4, 8), torch.float16, "silu", num_gradients)
    compiled = run_operator(case, lambda function: torch.compile(function, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled, run_operator(case), rtol=0, atol=0)


def test_a_graph_is_compiled_again_when_the_input_needs_no_gradient_any_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a phase of a run that trains no layer before this one takes the kernels."""
    monkeypatch.setattr(op, "_on_hopper", lambda device: True)
    case = random_case((3, 8, 5, 4, 16), torch.float16)
    before, filters = torch.ones(8, 1, 1, device=DEVICE).half(), case.filters.requires_grad_()

    def layer(x: torch.Tensor) -> torch.Tensor:
        x = x * before
        return op.conv_pool_norm_act(x, filters, case.norm()) if op.supports(x, filters) else x

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for requires_grad in (True, False, True):
        before.requires_grad_(requires_grad)
        assert compiled(case.x).shape == ((3, 8, 5, 4) if requires_grad else (3, 16, 2, 2))


def test_autocast_casts_and_any_strides_are_taken() -> None:
    case = random_case((3, 5, 5, 4, 8), torch.bfloat16, "gelu")
    copy = case.clone()
    filters = copy.filters.contiguous().requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y = op.conv_pool_norm_act(copy.x.float().contiguous(), filters, copy.norm(), "gelu", MOMENTUM, EPS)
    (dfilters,) = torch.autograd.grad(y, filters, case.gradients[0].contiguous())
    assert_results({"y": y.detach(), "dfilters": dfilters}, case)


@needs_gpu()
def test_capture_in_a_cuda_graph() -> None:
    case = random_case((16, 32, 15, 16, 64), torch.float16, "gelu", 2)
    static = case.clone()
    leaves = [static.filters.requires_grad_(), static.weight.requires_grad_(), static.bias.requires_grad_()]

    def step() -> list[torch.Tensor]:
        outputs = op.conv_pool_norm_act_twice(static.x, static.filters, static.norm(), "gelu", MOMENTUM, EPS)
        gradients = torch.autograd.grad([1 * each for each in outputs], leaves, static.gradients)
        return [outputs[0].detach(), *gradients]

    graph, captured = capture(step)
    rolled = case._replace(x=case.x.roll(1, 0), filters=case.filters.roll(1, 0))
    with torch.no_grad():
        for name in ("running_mean", "running_var", "x", "filters"):
            getattr(static, name).copy_(getattr(rolled, name))
    graph.replay()
    eager = run_operator(rolled)
    expected_results = [eager[name] for name in ("y", "dfilters", "dweight", "dbias")]
    torch.testing.assert_close(captured, expected_results, rtol=0, atol=0)
    torch.testing.assert_close(static.running_var, eager["running_var"], rtol=0, atol=0)


def test_operators_are_registered_soundly() -> None:
    case = random_case((3, 5, 5, 4, 8), torch.float16, "gelu")
    arguments = case.x, case.filters, *case.clone().norm(), "gelu", MOMENTUM, EPS
    assert_registered(torch.ops.quickres.conv_pool_norm_act.default, arguments)
    _, pooled, places, statistics = torch.ops.quickres.conv_pool_norm_act(*arguments)
    for second in (None, case.gradients[0]):
        saved = pooled, places, case.weight, case.bias, statistics
        backward = (case.gradients[0], second, *saved, "gelu", case.x)
        assert_registered(torch.ops.quickres.conv_pool_norm_act_backward.default, backward)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(4, 8, 6, 6), (8, 8, 3, 3), "x must be float16"),
        (torch.zeros(4, 33, 6, 6).half(), (8, 33, 3, 3), "x must be float16"),
        (torch.zeros(4, 8, 6).half(), (8, 8, 3, 3), "x must be float16"),
        (torch.zeros(4, 8, 6, 6).half().requires_grad_(), (8, 8, 3, 3), "x must not require a gradient"),
        (torch.zeros(4, 8, 6, 6).half(), (8, 7, 3, 3), "weight must be"),
        (torch.zeros(4, 8, 6, 6).half(), (129, 8, 3, 3), "weight must be"),
        (torch.zeros(1, 8, 3, 3).half(), (8, 8, 3, 3), "more than one window"),
        (torch.zeros(4, 8, 6, 6).half(), (9, 8, 3, 3), "norm.weight must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(x: torch.Tensor, weight: Any, message: str) -> None:
    for function in (op.conv_pool_norm_act, op.conv_pool_norm_act_twice):
        with pytest.raises(ValueError, match=message):
            function(x, torch.zeros(weight), Norm(*torch.zeros(4, 8)))


def test_support_depends_on_channels_dtype_gradient_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.zeros(4, 32, 6, 6).half(), torch.zeros(128, 32, 3, 3)
    assert op.supports(x, weight) is (ON_GPU and op._on_hopper(x.device))
    monkeypatch.setattr(op, "_on_hopper", lambda device: True)
    assert op.supports(x, weight) and op.supports(x.bfloat16(), weight)
    assert not op.supports(x.float(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert op.supports(x.float(), weight)
    assert not op.supports(x, torch.zeros(144, 32, 3, 3)) and not op.supports(x, torch.zeros(72, 32, 3, 3))
    for channels in (20, 40):
        assert not op.supports(torch.zeros(4, channels, 6, 6).half(), torch.zeros(128, channels, 3, 3))
    assert not op.supports(x.clone().requires_grad_(), weight)
