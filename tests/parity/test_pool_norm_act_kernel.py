"""Compare max-pool, batch norm and activation with PyTorch in float64: the kernels, reference, operators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional

from kernels.arguments import SMOOTH_ACTIVATIONS, Activation, Norm
from kernels.norm_tiles import TILINGS, Tiling
from kernels.pool_norm_act.backward import launch_backward
from kernels.pool_norm_act.forward import launch_forward
from kernels.pool_norm_act.op import pool_norm_act, pool_norm_act_twice
from kernels.pool_norm_act.reference import backward_reference, forward_reference, pool_norm_act_reference
from tests.gpus import DEVICE, NEEDS_GPU, USES_GPU, needs_gpu
from tests.parity.copies import copy_case
from tests.parity.operators import assert_registered, differentiate
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MOMENTUM, EPS = 0.1, 1e-5
VARIANTS: list[tuple[Activation, int]] = [  # activation, gradients
    *(("none", 1), ("relu", 1), ("relu", 2)),
    *(("silu", 1), ("silu", 2), ("gelu", 1), ("gelu", 2)),
]
# Even and odd heights and widths; one window an image; odd C, C below a tile's, and of more than one tile;
# several tiles a program and a part of one.
SHAPES = [(3, 5, 5, 4), (2, 64, 4, 7), (5, 16, 2, 2), (8, 72, 3, 3), (1, 16, 21, 21), (5, 64, 16, 16)]
_FUNCTIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}
Results = dict[str, torch.Tensor]


class Case(NamedTuple):
    x: torch.Tensor
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


def random_case(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    activation: Activation = "relu",
    num_gradients: int = 1,
) -> Case:
    """Return a case with many equal values in a window: x has quarters."""
    generator = torch.Generator().manual_seed(sum(shape))

    def in_dtype(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).to(DEVICE, memory_format=torch.channels_last)

    vectors = [torch.randn(shape[1], generator=generator).to(DEVICE) for _ in range(4)]
    x = in_dtype((4 * torch.randn(shape, generator=generator)).round() / 4)
    weight, bias, running_mean, running_var = vectors
    case = Case(x, weight, bias, running_mean, running_var.abs(), [], activation)
    # quarters up to 4; 0 where float32 may have z on the other side of 0
    decided = under_activation(case.clone(torch.float64)).abs() > 1e-5
    for _ in range(num_gradients):
        quarters = torch.randint(-16, 17, decided.shape, generator=generator).to(DEVICE)
        case.gradients.append(in_dtype(torch.where(decided, quarters / 4, 0)))
    return case


def under_activation(case: Case) -> torch.Tensor:
    pooled = functional.max_pool2d(case.x, 2)
    running = case.running_mean, case.running_var
    return functional.batch_norm(pooled, *running, case.weight, case.bias, True, MOMENTUM, EPS)


def expected(case: Case) -> Results:
    """Return y, the running statistics and all gradients in float64."""
    wide = case.clone(torch.float64)
    leaves = {name: getattr(wide, name).requires_grad_() for name in ("x", "weight", "bias")}
    y = _FUNCTIONS[wide.activation](under_activation(wide))
    gradient = torch.stack([each.double() for each in case.gradients]).sum(0)
    by_leaf = torch.autograd.grad(y, list(leaves.values()), gradient)
    running = {"running_mean": wide.running_mean, "running_var": wide.running_var}
    return {"y": y.detach()} | running | {f"d{k}": v for k, v in zip(leaves, by_leaf, strict=True)}


def assert_results(actual: Results, case: Case) -> None:
    results = expected(case)
    rounded = case.activation in SMOOTH_ACTIVATIONS and len(case.gradients) == 2
    assert actual.keys() == results.keys()
    for name, result in results.items():
        value = actual[name]
        is_activation = name in ("y", "dx")
        assert value.dtype is (case.x.dtype if is_activation else torch.float32)
        assert not is_activation or value.is_contiguous(memory_format=torch.channels_last)
        op = "statistics" if "running" in name else name
        if rounded and name.startswith("d"):
            num_rows = results["y"].numel() // case.x.shape[1]
            scale = 1.0 if is_activation else num_rows**-0.5  # as rounding errors of a sum grow
            op = f"{op}, rounded dz"
            assert_parity(value.double() * scale, result * scale, f"batch norm {op}", case.x.dtype)
        else:
            assert_parity(value.double(), result, f"batch norm {op}", value.dtype)
        if name == "dx":  # exactly 0 but at the maxima
            assert not value[result == 0].any()


def run_pair(forward: Callable[..., Any], backward: Callable[..., Any], case: Case) -> Results:
    """Return what a forward and a backward function, kernels or reference, compute."""
    copy = case.clone()
    y, pooled, places, statistics = forward(copy.x, copy.norm(), copy.activation, MOMENTUM, EPS)
    gradient, second_gradient = [*copy.gradients, None][:2]
    saved = pooled, places, copy.weight, copy.bias, statistics
    by_leaf = backward(gradient, second_gradient, *saved, copy.activation, *copy.x.shape[2:])
    running = {"running_mean": copy.running_mean, "running_var": copy.running_var}
    return {"y": y} | running | dict(zip(("dx", "dweight", "dbias"), by_leaf, strict=True))


def run_kernels(case: Case) -> Results:
    return run_pair(launch_forward, launch_backward, case)


def run_operator(case: Case, transform: Any = lambda function: function) -> Results:
    """Return what the differentiable function and autograd compute; `transform` may compile the function."""
    copy = case.clone()
    leaves = {name: getattr(copy, name).requires_grad_() for name in ("x", "weight", "bias")}
    functions = pool_norm_act, pool_norm_act_twice
    arguments = copy.x, copy.norm(), copy.activation, MOMENTUM, EPS
    running = {"running_mean": copy.running_mean, "running_var": copy.running_var}
    return differentiate(functions, arguments, leaves, copy.gradients, transform) | running


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "num_gradients"), VARIANTS)
def test_kernels(activation: Activation, num_gradients: int, dtype: torch.dtype) -> None:
    case = random_case((3, 64, 5, 7), dtype, activation, num_gradients)
    assert_results(run_kernels(case), case)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("activation", "num_gradients"), [("silu", 1), ("gelu", 2)])
def test_kernels_of_any_size(
    shape: tuple[int, int, int, int], activation: Activation, num_gradients: int
) -> None:
    case = random_case(shape, torch.float16, activation, num_gradients)
    assert_results(run_kernels(case), case)


@pytest.mark.parametrize("tiling", [Tiling(16, 1, 1, 1, 1), Tiling(128, 2, 4, 2, 1), Tiling(256, 4, 1, 9, 1)])
def test_kernels_of_any_tiling(tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in TILINGS:
        monkeypatch.setitem(TILINGS, key, tiling)
    case = random_case((3, 200, 6, 7), torch.float16, "silu")
    assert_results(run_kernels(case), case)


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(128, 64, 31, 31), (128, 256, 15, 15), (256, 256, 7, 7), (64, 384, 15, 15), (9, 67, 32, 33)]
)
@pytest.mark.parametrize(("activation", "num_gradients"), VARIANTS)
def test_large_kernels(
    shape: tuple[int, int, int, int], activation: Activation, num_gradients: int, dtype: torch.dtype
) -> None:
    case = random_case(shape, dtype, activation, num_gradients)
    results = run_kernels(case)
    assert_results(results, case)
    repeated = run_kernels(case)
    assert all(torch.equal(results[name], repeated[name]) for name in results), "two runs differ: a race"


def test_equal_values_and_nan_as_in_pytorch() -> None:
    """The gradient goes where `F.max_pool2d` sends it, for all windows of four values and NaN."""
    values = torch.tensor([-1.0, 0.0, 0.5, float("nan")])
    windows = torch.cartesian_prod(*[values] * 4).reshape(-1, 1, 2, 2)
    x = windows.to(DEVICE).contiguous(memory_format=torch.channels_last)
    _, pooled, places, _ = launch_forward(x, Norm(*torch.ones(4, 1, device=DEVICE)), "none", MOMENTUM, EPS)
    expected_pooled, indices = functional.max_pool2d(windows, 2, return_indices=True)
    torch.testing.assert_close(pooled.cpu(), expected_pooled, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(places.cpu().flatten().long(), indices.flatten())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_overflow_is_not_hidden(value: float) -> None:
    case = random_case((2, 8, 4, 4), torch.float16, "silu")
    case.x[1, 3, 2, 2] = value
    results = run_kernels(case)
    for name in ("y", "dx"):
        bad = results[name].isnan().permute(1, 0, 2, 3).flatten(1)
        assert bad.any(1).tolist() == [channel == 3 for channel in range(8)] and bad.sum() == 8
    assert results["running_var"].isfinite().tolist() == [channel != 3 for channel in range(8)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "num_gradients"), VARIANTS)
def test_reference_and_operator(activation: Activation, num_gradients: int, dtype: torch.dtype) -> None:
    case = random_case((3, 5, 5, 4), dtype, activation, num_gradients)

    def forward(x: torch.Tensor, norm: Norm, *rest: Any) -> Any:
        return forward_reference(x, *norm, *rest)

    if num_gradients == 1 or dtype is torch.float32:  # the kernels round dz, the reference does not
        assert_results(run_pair(forward, backward_reference, case), case)
    assert_results(run_operator(case), case)
    copy = case.clone()
    y = pool_norm_act_reference(copy.x, copy.norm(), activation, MOMENTUM, EPS)
    assert_parity(y.double(), expected(case)["y"], "batch norm y", dtype)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
@pytest.mark.parametrize("num_gradients", [1, 2])
def test_operator_compiles_into_one_graph(num_gradients: int, backend: str) -> None:
    case = random_case((3, 5, 5, 4), torch.float16, "silu", num_gradients)
    compiled = run_operator(case, lambda function: torch.compile(function, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled, run_operator(case), rtol=0, atol=0)


def test_operator_takes_any_strides_and_frozen_weights() -> None:
    case = random_case((3, 5, 6, 4), torch.bfloat16, "gelu")
    strided = case.x.contiguous().mT.contiguous().mT.requires_grad_()
    copy = case.clone()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y = pool_norm_act(strided, copy.norm(), "gelu")
    (dx,) = torch.autograd.grad(y, strided, case.gradients[0].contiguous())
    assert_parity(dx.double(), expected(case)["dx"], "batch norm dx", torch.bfloat16)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_operators_are_registered_soundly(activation: Activation) -> None:
    case = random_case((3, 5, 5, 4), torch.float32, activation)
    forward = (case.x, *case.norm(), activation, MOMENTUM, EPS)
    assert_registered(torch.ops.quickres.pool_norm_act.default, forward)
    _, pooled, places, statistics = torch.ops.quickres.pool_norm_act(*forward)
    for second in (None, case.gradients[0]):
        saved = pooled, places, case.weight, case.bias, statistics
        backward = (case.gradients[0], second, *saved, activation, 5, 4)
        assert_registered(torch.ops.quickres.pool_norm_act_backward.default, backward)


@pytest.mark.parametrize(
    ("x", "activation", "message"),
    [
        (torch.zeros(4, 8), "relu", "x must be"),
        (torch.zeros(4, 8, 2, 2, dtype=torch.float64), "relu", "x must be"),
        (torch.zeros(1, 8, 3, 3), "relu", "more than one window"),
        (torch.zeros(4, 8, 1, 9), "relu", "more than one window"),
        (torch.zeros(4, 9, 4, 4), "relu", "norm.weight must be"),
        (torch.zeros(4, 8, 4, 4), "tanh", "activation must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(x: torch.Tensor, activation: Any, message: str) -> None:
    for function in (pool_norm_act, pool_norm_act_twice):
        with pytest.raises(ValueError, match=message):
            function(x, Norm(*torch.zeros(4, 8)), activation)
