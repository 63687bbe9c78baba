"""Compare batch norm, residual and ReLU with `F.batch_norm` in float64: kernels, reference, operators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional

from kernels.arguments import SMOOTH_ACTIVATIONS, Activation, Norm
from kernels.batch_norm_act.backward import launch_backward
from kernels.batch_norm_act.forward import launch_forward
from kernels.batch_norm_act.op import batch_norm_act, batch_norm_act_twice
from kernels.batch_norm_act.reference import backward_reference, batch_norm_act_reference, forward_reference
from kernels.norm_tiles import TILINGS, Tiling, plan
from tests.gpus import DEVICE, NEEDS_GPU, USES_GPU, needs_gpu
from tests.parity.copies import copy_case
from tests.parity.operators import assert_registered, capture
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MOMENTUM, EPS = 0.1, 1e-5
# residual, activation, gradients
VARIANTS: list[tuple[bool, Activation, int]] = [
    (False, "relu", 1),
    (True, "relu", 1),
    (False, "none", 1),
    (True, "none", 1),
    (False, "relu", 2),
    (True, "relu", 2),
    (True, "none", 2),
    (False, "silu", 1),
    (True, "silu", 1),
    (True, "silu", 2),
    (False, "gelu", 1),
    (False, "gelu", 2),
    (True, "gelu", 1),
]
# Odd C and C below a tile's; C of one and a half tiles and of many; one value short of and beyond whole
# tiles; several tiles a program.
SHAPES = [
    (3, 5, 3, 3),
    (2, 1, 3, 3),
    (2, 72, 4, 4),
    (4, 512, 2, 2),
    (1, 16, 21, 21),
    (13, 64, 8, 8),
    (2, 129, 1, 1),
]


_FUNCTIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}


class Case(NamedTuple):
    x: torch.Tensor
    residual: torch.Tensor | None
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
    residual: bool = False,
    activation: Activation = "relu",
    num_gradients: int = 1,
    mean: float = 0.0,
) -> Case:
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(DEVICE)

    def in_dtype(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).to(DEVICE, memory_format=torch.channels_last)

    num_channels = shape[1]
    case = Case(
        in_dtype(normal(*shape) + mean),
        in_dtype(normal(*shape)) if residual else None,
        normal(num_channels),
        normal(num_channels),
        normal(num_channels),
        normal(num_channels).abs(),
        [],
        activation,
    )
    # Quarters up to 4, whose sums of two are exact in every dtype; 0 where float32 may have z on the other
    # side of 0.
    decided = sum_under_activation(case.clone(torch.float64)).abs() > 1e-5
    for _ in range(num_gradients):
        quarters = torch.randint(-16, 17, shape, generator=generator).to(DEVICE)
        case.gradients.append(in_dtype(torch.where(decided, quarters / 4, 0)))
    return case


def sum_under_activation(case: Case) -> torch.Tensor:
    z = functional.batch_norm(
        case.x, case.running_mean, case.running_var, case.weight, case.bias, True, MOMENTUM, EPS
    )
    return z if case.residual is None else z + case.residual


def arguments(case: Case) -> dict[str, Any]:
    return {"norm": case.norm(), "residual": case.residual, "activation": case.activation}


def expected(case: Case) -> dict[str, torch.Tensor]:
    """Return y, the running statistics and all gradients in float64."""
    wide = case.clone(torch.float64)
    leaves = {
        name: getattr(wide, name).requires_grad_()
        for name in ("x", "weight", "bias", "residual")
        if getattr(wide, name) is not None
    }
    z = sum_under_activation(wide)
    y = _FUNCTIONS[wide.activation](z)
    gradients = torch.autograd.grad(
        y, list(leaves.values()), torch.stack([each.double() for each in case.gradients]).sum(0)
    )
    by_name = dict(zip(leaves, gradients, strict=True))
    return {"y": y.detach(), "running_mean": wide.running_mean, "running_var": wide.running_var} | {
        f"d{k}": v for k, v in by_name.items()
    }


def stores_dz(case: Case) -> bool:
    """Return True if backward writes dz in the dtype of x, and reads it again."""
    return len(case.gradients) == 2 or (case.residual is not None and case.activation != "none")


def assert_results(actual: dict[str, torch.Tensor], case: Case) -> None:
    results = expected(case)
    # quarters stay exact under a slope of 0 or 1
    rounded = case.activation in SMOOTH_ACTIVATIONS and stores_dz(case)
    assert actual.keys() == results.keys()
    for name, result in results.items():
        value = actual[name]
        is_activation = name in ("y", "dx", "dresidual")
        assert value.dtype is (case.x.dtype if is_activation else torch.float32)
        assert not is_activation or value.is_contiguous(memory_format=torch.channels_last)
        op = "statistics" if "running" in name else name
        if rounded and name.startswith("d"):
            # rounding errors of a sum grow with the root of the number of its terms
            scale = 1.0 if is_activation else (case.x.numel() // case.x.shape[1]) ** -0.5
            op = f"{op}, rounded dz"
            assert_parity(value.double() * scale, result * scale, f"batch norm {op}", case.x.dtype)
        else:
            assert_parity(value.double(), result, f"batch norm {op}", value.dtype)


def run_pair(forward: Any, backward: Any, case: Case) -> dict[str, torch.Tensor]:
    """Return what a forward and a backward function, kernels or reference, compute."""
    copy = case.clone()
    y, statistics, mask = forward(copy.x, copy.residual, copy.norm(), copy.activation, MOMENTUM, EPS)
    gradient, second_gradient = [*copy.gradients, None][:2]
    returns_dz = stores_dz(case)
    residual = copy.residual if copy.activation in SMOOTH_ACTIVATIONS else None
    saved = copy.x, residual, mask if mask.numel() else None, copy.weight, copy.bias, statistics
    dx, dweight, dbias, dz = backward(gradient, second_gradient, *saved, copy.activation, returns_dz)
    results = {
        "y": y,
        "running_mean": copy.running_mean,
        "running_var": copy.running_var,
        "dx": dx,
        "dweight": dweight,
        "dbias": dbias,
    }
    return results | ({"dresidual": dz if returns_dz else gradient} if copy.residual is not None else {})


def run_kernels(case: Case) -> dict[str, torch.Tensor]:
    return run_pair(launch_forward, launch_backward, case)


def run_operator(case: Case, transform: Any = lambda function: function) -> dict[str, torch.Tensor]:
    """Return what the differentiable function and autograd compute; `transform` may compile the function."""
    copy = case.clone()
    leaves = {"x": copy.x, "weight": copy.weight, "bias": copy.bias, "residual": copy.residual}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items() if leaf is not None}

    def once(x: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
        return [1 * batch_norm_act(x, **kwargs)]

    def twice(x: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
        first, second = batch_norm_act_twice(x, **kwargs)
        return [1 * first, 1 * second]

    outputs = transform(twice if len(copy.gradients) == 2 else once)(
        copy.x, **arguments(copy), momentum=MOMENTUM, eps=EPS
    )
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), copy.gradients)
    return {"y": outputs[0].detach(), "running_mean": copy.running_mean, "running_var": copy.running_var} | {
        f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("residual", "activation", "num_gradients"), VARIANTS)
def test_kernels(residual: bool, activation: Activation, num_gradients: int, dtype: torch.dtype) -> None:
    case = random_case((2, 64, 5, 7), dtype, residual, activation, num_gradients)
    assert_results(run_kernels(case), case)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("residual", "activation", "num_gradients"), [(False, "relu", 1), (True, "relu", 2), (True, "gelu", 1)]
)
def test_kernels_of_any_size(
    shape: tuple[int, int, int, int], residual: bool, activation: Activation, num_gradients: int
) -> None:
    case = random_case(shape, torch.float16, residual, activation, num_gradients)
    assert_results(run_kernels(case), case)


@pytest.mark.parametrize("tiling", [Tiling(16, 1, 1, 1, 3), Tiling(128, 2, 4, 2, 1), Tiling(256, 4, 1, 9, 2)])
def test_kernels_of_any_tiling(tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in TILINGS:
        monkeypatch.setitem(TILINGS, key, tiling)
    case = random_case((3, 200, 5, 5), torch.float16, True, "relu", 1)
    assert_results(run_kernels(case), case)


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(128, 64, 32, 32), (100, 128, 15, 17), (256, 512, 4, 4), (64, 2048, 7, 7), (9, 67, 31, 33)]
)
@pytest.mark.parametrize(("residual", "activation", "num_gradients"), VARIANTS)
def test_large_kernels(
    shape: tuple[int, int, int, int],
    residual: bool,
    activation: Activation,
    num_gradients: int,
    dtype: torch.dtype,
) -> None:
    case = random_case(shape, dtype, residual, activation, num_gradients)
    results = run_kernels(case)
    y = batch_norm_act_reference(case.clone().x.double(), **arguments(case.clone(torch.float64)))
    assert_parity(results["y"].double(), y, "batch norm y", dtype)
    repeated = run_kernels(case)
    assert all(torch.equal(results[name], repeated[name]) for name in results), "two runs differ: a race"


@pytest.mark.parametrize(
    ("dtype", "mean"),
    [(torch.float32, 1000.0), (torch.float32, -3e4), (torch.float16, 1000.0), (torch.bfloat16, 100.0)],
)
def test_a_mean_far_from_zero(dtype: torch.dtype, mean: float) -> None:
    """Keep the digits that E[x²] - E[x]² in float32 would lose at a mean of 3e4 and a deviation of 1."""
    case = random_case((13, 64, 8, 8), dtype, mean=mean)
    statistics = launch_forward(case.x, None, case.norm(), "relu", MOMENTUM, EPS)[1]
    var, expected_mean = torch.var_mean(case.x.double(), (0, 2, 3), correction=0)
    assert_parity(statistics[0].double(), expected_mean, "batch norm shifted mean", torch.float32)
    assert_parity(statistics[1].double(), (var + EPS).rsqrt(), "batch norm shifted deviation", torch.float32)


def test_constant_channels() -> None:
    case = random_case((13, 64, 8, 8))
    case.x[:] = torch.linspace(-1e4, 1e4, 64).to(DEVICE)[:, None, None]
    results = run_kernels(case._replace(activation="none"))
    torch.testing.assert_close(
        results["y"], case.bias[:, None, None].expand_as(case.x), rtol=0, atol=1e-5 * 1e4 * 316
    )
    assert results["dx"].isfinite().all()
    centred = case.x[0, :, 0, 0].abs() < 1000  # sums of these are exact enough to be constant after the shift
    torch.testing.assert_close(
        results["running_var"][centred], 0.9 * case.running_var[centred], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("residual", [False, True])
def test_relu_decides_before_rounding(residual: bool) -> None:
    """Check z = ±1e-9: both are 0 in half precision, but only the gradient of the positive one passes."""
    case = random_case((2, 8, 4, 4), torch.float16, residual)
    case.x.fill_(1.5)
    case.bias[:] = torch.tensor([1e-9, -1e-9]).repeat(4)
    if case.residual is not None:
        case.residual.zero_()
    results = run_kernels(case)
    assert not results["y"].any()
    sums = case.gradients[0].sum((0, 2, 3), dtype=torch.float32)
    torch.testing.assert_close(results["dbias"], torch.where(case.bias > 0, sums, 0.0), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_overflow_is_not_hidden(value: float, residual: bool) -> None:
    case = random_case((2, 8, 4, 4), torch.float16, residual)
    case.x[1, 3, 2, 2] = value
    results = run_kernels(case)
    for name in ("y", "dx"):
        bad = results[name].isnan().permute(1, 0, 2, 3).flatten(1)
        assert bad.all(1).tolist() == [channel == 3 for channel in range(8)] and bad.sum() == 32
    assert results["running_var"].isfinite().tolist() == [channel != 3 for channel in range(8)]


@pytest.mark.parametrize(("residual", "activation", "num_gradients"), VARIANTS)
def test_reference(residual: bool, activation: Activation, num_gradients: int) -> None:
    case = random_case((3, 5, 3, 3), torch.float32, residual, activation, num_gradients)

    def forward(x: torch.Tensor, residual: torch.Tensor | None, norm: Norm, *rest: Any) -> Any:
        return forward_reference(x, residual, *norm, *rest)

    assert_results(run_pair(forward, backward_reference, case), case)
    copy = case.clone()
    y = batch_norm_act_reference(copy.x, **arguments(copy))
    assert_parity(y.double(), expected(case)["y"], "batch norm y", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("residual", "activation", "num_gradients"), VARIANTS)
def test_operator(residual: bool, activation: Activation, num_gradients: int, dtype: torch.dtype) -> None:
    case = random_case((3, 5, 3, 3), dtype, residual, activation, num_gradients)
    assert_results(run_operator(case), case)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
@pytest.mark.parametrize(("residual", "num_gradients"), [(False, 1), (True, 1), (True, 2)])
def test_operator_compiles_into_one_graph(residual: bool, num_gradients: int, backend: str) -> None:
    case = random_case((3, 5, 3, 3), torch.float16, residual, "relu", num_gradients)
    compiled = run_operator(case, lambda function: torch.compile(function, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled, run_operator(case), rtol=0, atol=0)


def test_one_of_two_outputs_may_go_unused() -> None:
    case = random_case((3, 5, 3, 3))
    for used in (0, 1):
        copy = case.clone()
        outputs = batch_norm_act_twice(copy.x.requires_grad_(), **arguments(copy))
        (dx,) = torch.autograd.grad(outputs[used], [copy.x], copy.gradients[0])
        assert_parity(dx.double(), expected(case)["dx"], "batch norm dx", torch.float32)


def test_operator_takes_any_strides_and_autocast() -> None:
    case = random_case((3, 5, 3, 4), torch.bfloat16, residual=True)
    assert case.residual is not None
    strided = case._replace(
        x=case.x.contiguous(),
        residual=case.residual.mT.contiguous().mT,
        gradients=[case.gradients[0][:1].expand_as(case.x)],
    )
    with torch.autocast(DEVICE.type, torch.bfloat16):
        results = run_operator(strided)
    assert_results(results, strided)


@pytest.mark.parametrize(
    ("residual", "activation"), [(False, "relu"), (True, "relu"), (False, "none"), (True, "silu")]
)
def test_operators_are_registered_soundly(residual: bool, activation: Activation) -> None:
    case = random_case((3, 5, 3, 3), torch.float32, residual, activation)
    forward = (case.x, case.residual, *case.norm(), activation, MOMENTUM, EPS)
    assert_registered(torch.ops.quickres.batch_norm_act.default, forward)
    _, statistics, mask = torch.ops.quickres.batch_norm_act(*forward)
    saved_mask = mask if mask.numel() else None
    for second in (None, case.gradients[0]):
        saved = case.x, case.residual, saved_mask, case.weight, case.bias, statistics
        backward = (case.gradients[0], second, *saved, activation, second is not None)
        assert_registered(torch.ops.quickres.batch_norm_act_backward.default, backward)


@needs_gpu()
def test_capture_in_a_cuda_graph() -> None:
    case = random_case((8, 64, 16, 16), torch.float16, True, "relu", 2)
    static = case.clone()
    leaves = [static.x.requires_grad_(), static.weight.requires_grad_(), static.bias.requires_grad_()]

    def step() -> list[torch.Tensor]:
        outputs = batch_norm_act_twice(static.x, **arguments(static))
        return [
            outputs[0].detach(),
            *torch.autograd.grad([1 * each for each in outputs], leaves, static.gradients),
        ]

    graph, captured = capture(step)
    with torch.no_grad():
        static.running_mean.copy_(case.running_mean)
        static.running_var.copy_(case.running_var)
        static.x.copy_(case.x.roll(1, 0))
    graph.replay()
    eager = run_operator(case._replace(x=case.x.roll(1, 0)))
    torch.testing.assert_close(
        captured, [eager[name] for name in ("y", "dx", "dweight", "dbias")], rtol=0, atol=0
    )
    torch.testing.assert_close(static.running_var, eager["running_var"], rtol=0, atol=0)


def test_tilings_cover_every_kernel() -> None:
    kernels = (
        *("statistics", "apply", "gradient sums", "gradient"),
        *("smooth gradient sums", "dual gradient sums", "dual gradient"),
        *("pool statistics", "pool gradient", "norm pool", "norm pool gradient"),
        *("inference", "pool inference"),
    )
    assert set(TILINGS) == {
        (kernel, num_channels) for kernel in kernels for num_channels in (64, 128, 256, 512)
    }
    for num_channels in (1, 63, 64, 65, 512, 2048):
        x = torch.empty(2, num_channels, 3, 3)
        for kernel in kernels:
            launch = plan(kernel, x)
            assert launch.grid[1] * launch.options["BLOCK_CHANNELS"] >= num_channels


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activations_far_from_zero(activation: Activation) -> None:
    """Compare values and slopes at all z where they are not yet 0, z or 1 in float32."""
    z = torch.linspace(-12, 12, 2048, device=DEVICE)
    case = random_case((2048, 1, 1, 1), activation=activation)
    mean, deviation = z.double().mean(), z.double().var(correction=0).add(EPS).sqrt()
    case.x.flatten().copy_(z)
    case.weight.fill_(float(deviation))
    case.bias.fill_(float(mean))
    assert_results(run_kernels(case), case)


BAD_ARGUMENTS = [
    ({"x": torch.zeros(4, 8)}, "x must be"),
    ({"x": torch.zeros(4, 8, 2, 2, dtype=torch.float64)}, "x must be"),
    ({"x": torch.zeros(1, 8, 1, 1)}, "more than one value"),
    ({"weight": torch.zeros(9)}, "norm.weight must be"),
    ({"bias": torch.zeros(8, dtype=torch.float16)}, "norm.bias must be"),
    ({"running_var": torch.zeros(16)[::2]}, "norm.running_var must be"),
    ({"residual": torch.zeros(4, 8, 2, 1)}, "residual must be"),
    ({"residual": torch.zeros(4, 8, 2, 2, dtype=torch.float16)}, "residual must be"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    norm = Norm(*(changed.get(name, torch.zeros(8)) for name in Norm._fields))
    x = changed.get("x", torch.zeros(4, 8, 2, 2))
    with pytest.raises(ValueError, match=message):
        batch_norm_act(x, norm, changed.get("residual"))


def test_an_unknown_activation_is_refused() -> None:
    x, norm = torch.zeros(4, 8, 2, 2), Norm(*(torch.zeros(8) for _ in Norm._fields))
    for function in (batch_norm_act, batch_norm_act_twice):
        with pytest.raises(ValueError, match="activation must be one of none, relu"):
            function(x, norm, None, "tanh")  # type: ignore[arg-type]
