"""Compare the norm of inference with PyTorch in float64: the kernel, the reference and the operator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from kernels.arguments import Activation, Norm
from kernels.norm_act_inference.forward import launch
from kernels.norm_act_inference.op import norm_act_inference
from kernels.norm_act_inference.reference import norm_act_inference_reference
from kernels.norm_tiles import TILINGS, Tiling
from tests.gpus import DEVICE, USES_GPU, needs_gpu
from tests.parity.operators import assert_registered
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

EPS = 1e-3
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One value a channel; odd C, C below a tile's, and of more than one tile; several tiles a program.
SHAPES = [(1, 8, 1, 1), (3, 5, 5, 4), (2, 64, 4, 7), (8, 72, 3, 3), (1, 16, 21, 21)]
KINDS = ["plain", "residual", "normalised residual", "pool"]
_FUNCTIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}


def random_arguments(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, activation: Activation = "relu"
) -> tuple[Any, ...]:
    """Return the arguments of the operator; every dtype of this test holds the activations exactly."""
    generator = torch.Generator().manual_seed(sum(shape))

    def values() -> torch.Tensor:
        numbers = torch.randn(shape, generator=generator).bfloat16().to(dtype)
        return numbers.to(DEVICE).contiguous(memory_format=torch.channels_last)

    def norm() -> list[torch.Tensor]:
        vectors = torch.randn(4, shape[1], generator=generator)
        return [*vectors[:3].to(DEVICE).unbind(), vectors[3].to(DEVICE).abs() + 0.1]

    residual = values() if "residual" in kind else None
    residual_norm = norm() if kind == "normalised residual" else []
    return values(), norm(), residual, residual_norm, activation, EPS, kind == "pool"


def expected(arguments: tuple[Any, ...]) -> torch.Tensor:
    """Return y in float64."""
    x, norm, residual, residual_norm, activation, eps, pool = arguments

    def normalised(values: torch.Tensor, vectors: list[torch.Tensor]) -> torch.Tensor:
        weight, bias, mean, var = (vector.double() for vector in vectors)
        return functional.batch_norm(values.double(), mean, var, weight, bias, False, eps=eps)

    z = normalised(functional.max_pool2d(x, 2) if pool else x, norm)
    if residual is not None:
        z = z + (normalised(residual, residual_norm) if residual_norm else residual.double())
    return _FUNCTIONS[activation](z)


def assert_result(y: torch.Tensor, arguments: tuple[Any, ...]) -> None:
    assert y.dtype is arguments[0].dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert_parity(y.double(), expected(arguments), "inference norm y", y.dtype)


def fits(shape: tuple[int, ...], kind: str) -> bool:
    return kind != "pool" or min(shape[2:]) > 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "kind"), [(shape, kind) for shape in SHAPES for kind in KINDS if fits(shape, kind)]
)
def test_kernel(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    arguments = random_arguments(shape, kind, dtype)
    assert_result(launch(*arguments), arguments)


@pytest.mark.parametrize("kind", ["residual", "pool"])
@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
def test_kernel_with_each_activation(activation: Activation, kind: str) -> None:
    arguments = random_arguments((3, 5, 5, 4), kind, torch.float16, activation)
    assert_result(launch(*arguments), arguments)


@pytest.mark.parametrize("kind", ["residual", "pool"])
def test_kernel_with_many_tiles_a_program(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("inference", "pool inference"):
        monkeypatch.setitem(TILINGS, (kernel, 64), Tiling(8, 1, 1, 1, 1))
    arguments = random_arguments((5, 24, 17, 16), kind, torch.float32)
    assert_result(launch(*arguments), arguments)


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(512, 64, 31, 31), (300, 256, 15, 15), (64, 2048, 7, 7)])
def test_large_kernel(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    arguments = random_arguments(shape, kind, dtype, "gelu")
    assert_result(launch(*arguments), arguments)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("kind", ["plain", "pool"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
def test_overflow_is_not_hidden(kind: str, value: float) -> None:
    arguments = random_arguments((2, 16, 4, 4), kind, torch.float16)
    arguments[0][1, 5, 2, 2] = value
    arguments[1][0].abs_()
    assert (~launch(*arguments).isfinite()).sum().item() == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_operator_and_reference(kind: str, dtype: torch.dtype) -> None:
    arguments = random_arguments((3, 5, 5, 4), kind, dtype)
    assert_result(norm_act_inference_reference(*arguments), arguments)
    x, norm, residual, residual_norm, *rest = arguments
    if residual is not None:
        residual = residual.contiguous()  # any strides
    other = Norm(*residual_norm) if residual_norm else None
    assert_result(norm_act_inference(x.contiguous(), Norm(*norm), residual, other, *rest), arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_operator_is_registered_soundly(kind: str) -> None:
    arguments = random_arguments((3, 5, 5, 4), kind, torch.float16)
    assert_registered(torch.ops.quickres.norm_act_inference.default, arguments)


X, NORM = torch.zeros(2, 3, 4, 4), Norm(*(torch.ones(3) for _ in range(4)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X.double()}, "x must be"),
        ({"x": X[:0]}, "x must have a value"),
        ({"x": X[:, :, :1], "pool": True}, "2x2 pixels"),
        ({"norm": NORM._replace(bias=torch.ones(4))}, "norm.bias must be"),
        ({"residual": X.half()}, "residual must be"),
        ({"residual_norm": NORM}, "residual_norm needs"),
        (
            {"residual": X, "residual_norm": NORM._replace(weight=torch.ones(4))},
            "residual_norm.weight must be",
        ),
        ({"residual": X, "pool": True}, "exclude"),
        ({"activation": "tanh"}, "activation must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        norm_act_inference(**{"x": X, "norm": NORM, **changed})
