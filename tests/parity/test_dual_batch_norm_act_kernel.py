"""Compare two batch norms, their sum and ReLU with `F.batch_norm` in float64: all implementations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional

from kernels.arguments import Norm
from kernels.dual_batch_norm_act.backward import launch_backward
from kernels.dual_batch_norm_act.forward import launch_forward
from kernels.dual_batch_norm_act.op import dual_batch_norm_act, dual_batch_norm_act_twice
from kernels.dual_batch_norm_act.reference import (
    dual_backward_reference,
    dual_batch_norm_act_reference,
    dual_forward_reference,
)
from tests.gpus import DEVICE, NEEDS_GPU, USES_GPU, needs_gpu
from tests.parity.copies import copy_case
from tests.parity.operators import assert_registered, differentiate
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MOMENTUM, EPS = 0.1, 1e-5
LEAVES = ("x", "weight", "bias", "residual", "residual_weight", "residual_bias")
Results = dict[str, torch.Tensor]


class Case(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    residual: torch.Tensor
    residual_weight: torch.Tensor
    residual_bias: torch.Tensor
    residual_running_mean: torch.Tensor
    residual_running_var: torch.Tensor

    def norms(self) -> tuple[Norm, Norm]:
        return Norm(*self[1:5]), Norm(*self[6:])

    def clone(self, dtype: torch.dtype | None = None) -> "Case":
        return copy_case(self, dtype)

    def running(self) -> Results:
        return {name: value.detach() for name, value in self._asdict().items() if "running" in name}


def random_case(
    shape: tuple[int, int, int, int], dtype: torch.dtype, num_gradients: int
) -> tuple[Case, list[torch.Tensor]]:
    """Return the arguments and the gradients of the uses of y."""
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(DEVICE)

    def activation(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).to(DEVICE, memory_format=torch.channels_last)

    def norm() -> list[torch.Tensor]:
        return [normal(shape[1]), normal(shape[1]), normal(shape[1]), normal(shape[1]).abs()]

    case = Case._make([activation(normal(*shape)), *norm(), activation(2 * normal(*shape) + 1), *norm()])
    # Quarters up to 4, whose sums of two are exact in every dtype; 0 where float32 may have the sum on the
    # other side of 0.
    decided = sum_under_relu(case.clone(torch.float64)).abs() > 1e-5
    quarters = [
        torch.randint(-16, 17, shape, generator=generator).to(DEVICE) / 4 for _ in range(num_gradients)
    ]
    return case, [activation(torch.where(decided, each, 0)) for each in quarters]


def sum_under_relu(case: Case) -> torch.Tensor:
    def normalised(x, weight, bias, running_mean, running_var) -> torch.Tensor:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, True, MOMENTUM, EPS)

    return normalised(*case[:5]) + normalised(*case[5:])


def assert_results(actual: Results, case: Case, gradients: list[torch.Tensor]) -> None:
    wide = case.clone(torch.float64)
    leaves = [getattr(wide, name).requires_grad_() for name in LEAVES]
    y = sum_under_relu(wide).relu()
    by_leaf = torch.autograd.grad(y, leaves, torch.stack([each.double() for each in gradients]).sum(0))
    results = (
        {"y": y.detach()}
        | wide.running()
        | {f"d{name}": value for name, value in zip(LEAVES, by_leaf, strict=True)}
    )
    assert actual.keys() == results.keys()
    for name, result in results.items():
        value = actual[name]
        is_activation = name in ("y", "dx", "dresidual")
        assert value.dtype is (case.x.dtype if is_activation else torch.float32)
        assert not is_activation or value.is_contiguous(memory_format=torch.channels_last)
        op = "statistics" if "running" in name else name.replace("residual_", "").replace("residual", "x")
        assert_parity(value.double(), result, f"batch norm {op}", value.dtype)


def run_pair(
    forward: Callable[..., Any], backward: Callable[..., Any], case: Case, gradients: list[torch.Tensor]
) -> Results:
    """Return what a forward and a backward function, kernels or reference, compute."""
    copy = case.clone()
    y, statistics, mask = forward(*copy, MOMENTUM, EPS)
    gradient, second_gradient = [*gradients, None][:2]
    parameters = copy.weight, copy.bias, copy.residual_weight
    by_leaf = backward(gradient, second_gradient, copy.x, copy.residual, mask, *parameters, statistics)
    return (
        {"y": y} | copy.running() | {f"d{name}": value for name, value in zip(LEAVES, by_leaf, strict=True)}
    )


def run_kernels(case: Case, gradients: list[torch.Tensor]) -> Results:
    def forward(*arguments: Any) -> Any:
        copy = Case(*arguments[:10])
        norm, residual_norm = copy.norms()
        return launch_forward(copy.x, norm, copy.residual, residual_norm, *arguments[10:])

    return run_pair(forward, launch_backward, case, gradients)


def run_operator(
    case: Case, gradients: list[torch.Tensor], transform: Any = lambda function: function
) -> Results:
    """Return what the differentiable function and autograd compute; `transform` may compile the function."""
    copy = case.clone()
    leaves = {name: getattr(copy, name).requires_grad_() for name in LEAVES}
    functions = dual_batch_norm_act, dual_batch_norm_act_twice
    norm, residual_norm = copy.norms()
    arguments = copy.x, norm, copy.residual, residual_norm, MOMENTUM, EPS
    return differentiate(functions, arguments, leaves, gradients, transform) | copy.running()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "num_gradients"),
    [((2, 64, 5, 7), 1), ((2, 129, 3, 5), 1), ((4, 16, 10, 9), 2), ((3, 5, 3, 3), 2)],
)
def test_kernels(shape: tuple[int, int, int, int], num_gradients: int, dtype: torch.dtype) -> None:
    case, gradients = random_case(shape, dtype, num_gradients)
    assert_results(run_kernels(case, gradients), case, gradients)


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(128, 128, 16, 16), (256, 512, 4, 4), (9, 67, 31, 33)])
@pytest.mark.parametrize("num_gradients", [1, 2])
def test_large_kernels(shape: tuple[int, int, int, int], num_gradients: int, dtype: torch.dtype) -> None:
    case, gradients = random_case(shape, dtype, num_gradients)
    results = run_kernels(case, gradients)
    assert_results(results, case, gradients)
    repeated = run_kernels(case, gradients)
    assert all(torch.equal(results[name], repeated[name]) for name in results), "two runs differ: a race"


@pytest.mark.parametrize("num_gradients", [1, 2])
def test_reference(num_gradients: int) -> None:
    case, gradients = random_case((3, 5, 3, 3), torch.float32, num_gradients)
    assert_results(
        run_pair(dual_forward_reference, dual_backward_reference, case, gradients), case, gradients
    )
    norm, residual_norm = case.clone().norms()
    y = dual_batch_norm_act_reference(case.x, norm, case.residual, residual_norm, MOMENTUM, EPS)
    assert_parity(y.double(), sum_under_relu(case.clone(torch.float64)).relu(), "batch norm y", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_gradients", [1, 2])
def test_operator(num_gradients: int, dtype: torch.dtype) -> None:
    case, gradients = random_case((3, 5, 3, 3), dtype, num_gradients)
    assert_results(run_operator(case, gradients), case, gradients)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
def test_operator_compiles_into_one_graph(backend: str) -> None:
    case, gradients = random_case((3, 5, 3, 3), torch.float16, 2)
    compiled = run_operator(
        case, gradients, lambda function: torch.compile(function, fullgraph=True, backend=backend)
    )
    torch.testing.assert_close(compiled, run_operator(case, gradients), rtol=0, atol=0)


def test_operators_are_registered_soundly() -> None:
    case, (gradient,) = random_case((3, 5, 3, 3), torch.float32, 1)
    assert_registered(torch.ops.quickres.dual_batch_norm_act.default, (*case, MOMENTUM, EPS))
    _, statistics, mask = torch.ops.quickres.dual_batch_norm_act(*case, MOMENTUM, EPS)
    parameters = case.weight, case.bias, case.residual_weight
    backward = (gradient, None, case.x, case.residual, mask, *parameters, statistics)
    assert_registered(torch.ops.quickres.dual_batch_norm_act_backward.default, backward)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(4, 8, 2, 2, dtype=torch.float64)}, "x must be"),
        ({"residual": torch.zeros(4, 8, 2, 1)}, "residual must be"),
        ({"residual_bias": torch.zeros(9)}, "residual_norm.bias must be"),
        ({"running_var": torch.zeros(16)[::2]}, "norm.running_var must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: Results, message: str) -> None:
    case = Case(
        *(torch.zeros(4, 8, 2, 2) if name in ("x", "residual") else torch.zeros(8) for name in Case._fields)
    )._replace(**changed)
    norm, residual_norm = case.norms()
    with pytest.raises(ValueError, match=message):
        dual_batch_norm_act(case.x, norm, case.residual, residual_norm)
