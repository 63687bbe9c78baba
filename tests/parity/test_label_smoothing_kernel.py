"""Compare label-smoothed cross-entropy with `F.cross_entropy` in float64: kernels, reference, operator."""

import pytest
import torch
from torch.nn import functional

from kernels.label_smoothing_cross_entropy import forward as module
from kernels.label_smoothing_cross_entropy.backward import launch_gradient
from kernels.label_smoothing_cross_entropy.forward import launch_loss
from kernels.label_smoothing_cross_entropy.op import label_smoothing_cross_entropy
from kernels.label_smoothing_cross_entropy.reference import (
    label_smoothing_cross_entropy_gradient_reference,
    label_smoothing_cross_entropy_reference,
)
from tests.gpus import DEVICE, NEEDS_GPU, USES_GPU, needs_gpu
from tests.parity.operators import assert_registered
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One class; few classes in one program, in part of a block and in several; many classes with few and many
# rows a program.
SHAPES = [
    (3, 1),
    (1, 10),
    (7, 10),
    (512, 10),
    (1100, 10),
    (33, 31),
    (7, 33),
    (7, 100),
    (40, 129),
    (3, 1000),
    (2, 4001),
]


def random_batch(num_rows: int, num_classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows + num_classes)
    logits = (5 * torch.randn(num_rows, num_classes, generator=generator)).to(dtype)
    return logits.to(DEVICE), torch.randint(0, num_classes, (num_rows,), generator=generator).to(DEVICE)


def expected(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float, gradient: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and, for this gradient by the loss, the gradient by the logits, both float64."""
    wide = logits.detach().double().requires_grad_()
    loss = functional.cross_entropy(wide, targets, label_smoothing=smoothing)
    (by_logits,) = torch.autograd.grad(
        loss, wide, torch.tensor(gradient, dtype=torch.float64, device=wide.device)
    )
    return loss.detach(), by_logits


def assert_kernels(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> None:
    scale = 8.0 * len(logits)  # a loss scale: p - q then reaches the output 8-fold, whatever the batch
    loss, by_logits = expected(logits, targets, smoothing, scale)
    actual_loss = launch_loss(logits, targets, smoothing)
    assert actual_loss.dtype is torch.float32 and actual_loss.shape == ()
    assert_parity(actual_loss.double(), loss, "label smoothing loss", torch.float32)
    actual = launch_gradient(torch.tensor(scale, device=DEVICE), logits, targets, smoothing)
    assert actual.dtype is logits.dtype
    assert_parity(actual.double(), by_logits, "label smoothing gradient", logits.dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "num_classes"), SHAPES)
def test_kernels(num_rows: int, num_classes: int, dtype: torch.dtype, smoothing: float) -> None:
    assert_kernels(*random_batch(num_rows, num_classes, dtype), smoothing)


@pytest.mark.parametrize("smoothing", [0.3, 1.0])
def test_strong_smoothing(smoothing: float) -> None:
    assert_kernels(*random_batch(7, 10, torch.float32), smoothing)


def test_many_partial_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the path of many classes, with more sums than the kernel that adds them up takes at a time."""
    monkeypatch.setattr(module, "_FEW_CLASSES", 0)
    monkeypatch.setattr(module, "_BLOCK", 16)
    assert_kernels(*random_batch(37, 10, torch.float32), 0.1)


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_classes"), [(4096, 10), (5000, 10), (2048, 100), (3001, 1000), (64, 32768)]
)
def test_large_batches(num_rows: int, num_classes: int, dtype: torch.dtype) -> None:
    assert_kernels(*random_batch(num_rows, num_classes, dtype), 0.1)


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float32, 1e4), (torch.float16, 65504.0), (torch.bfloat16, 1e30)]
)
@pytest.mark.parametrize("num_classes", [10, 33])
def test_large_logits_stay_finite(dtype: torch.dtype, largest: float, num_classes: int) -> None:
    logits, targets = random_batch(5, num_classes, dtype)
    logits[0], logits[1], logits[2, ::2], logits[3, targets[3]] = largest, -largest, -largest, largest
    logits[4] = -largest
    logits[4, targets[4]] = largest
    assert launch_loss(logits, targets, 0.1).isfinite()
    assert_kernels(logits, targets, 0.1)


@pytest.mark.parametrize("target", [-100, -1, 10, 2**40])
@pytest.mark.parametrize("few_classes", [0, 32])
def test_a_target_out_of_range_shows_as_nan(
    target: int, few_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FEW_CLASSES", few_classes)
    logits, targets = random_batch(7, 10, torch.float32)
    targets[3] = target
    assert launch_loss(logits, targets, 0.1).isnan()
    rows_with_nan = launch_gradient(torch.ones((), device=DEVICE), logits, targets, 0.1).isnan().all(dim=1)
    assert rows_with_nan.tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_reference(dtype: torch.dtype, smoothing: float) -> None:
    logits, targets = random_batch(7, 33, dtype)
    loss, by_logits = expected(logits, targets, smoothing, 56.0)
    actual_loss = label_smoothing_cross_entropy_reference(logits, targets, smoothing)
    assert_parity(actual_loss.double(), loss, "label smoothing loss", torch.float32)
    actual = label_smoothing_cross_entropy_gradient_reference(
        torch.tensor(56.0, device=DEVICE), logits, targets, smoothing
    )
    precision = torch.float32 if dtype is torch.float64 else dtype
    assert_parity(actual.double(), by_logits, "label smoothing gradient", precision)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operator_and_its_gradient(dtype: torch.dtype) -> None:
    logits, targets = random_batch(7, 10, dtype)
    logits.requires_grad_()
    loss = label_smoothing_cross_entropy(logits, targets, 0.1)
    (56 * loss).backward()
    expected_loss, by_logits = expected(logits, targets, 0.1, 56.0)
    assert_parity(loss.detach().double(), expected_loss, "label smoothing loss", torch.float32)
    assert logits.grad is not None
    assert_parity(logits.grad.double(), by_logits, "label smoothing gradient", dtype)


def test_operator_takes_logits_of_any_strides() -> None:
    logits, targets = random_batch(7, 10, torch.float32)
    strided = logits.T.contiguous().T.requires_grad_()
    loss = label_smoothing_cross_entropy(strided, targets, 0.1)
    loss.backward()
    expected_loss, by_logits = expected(logits, targets, 0.1, 1.0)
    assert_parity(loss.detach().double(), expected_loss, "label smoothing loss", torch.float32)
    assert strided.grad is not None
    assert_parity(strided.grad.double(), by_logits, "label smoothing gradient", torch.float32)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_GPU)])
def test_operator_compiles_into_one_graph(backend: str) -> None:
    logits, targets = random_batch(7, 10, torch.float16)

    def step(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 56 * label_smoothing_cross_entropy(2 * logits, targets, 0.1)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, targets)
        loss.backward()
        assert leaf.grad is not None
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


# `opcheck` itself warns
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", DTYPES)
def test_operator_is_registered_soundly(dtype: torch.dtype) -> None:
    logits, targets = random_batch(7, 10, dtype)
    assert_registered(
        torch.ops.quickres.label_smoothing_cross_entropy.default, (logits.requires_grad_(), targets, 0.1)
    )
    gradient = torch.ones((), device=DEVICE)
    assert_registered(
        torch.ops.quickres.label_smoothing_cross_entropy_gradient.default,
        (gradient, logits.detach(), targets, 0.1),
    )


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64), "logits must be"),
        (torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64), "logits must be"),
        (torch.zeros(1, 32769), torch.zeros(1, dtype=torch.int64), "logits must be"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int32), "targets must be"),
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64), "targets must be"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64), "targets must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    logits: torch.Tensor, targets: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        label_smoothing_cross_entropy(logits, targets, 0.1)
