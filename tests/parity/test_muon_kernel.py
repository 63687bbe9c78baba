"""Compare a step of Muon with float64 arithmetic: kernels, reference, operator."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl

from kernels.muon import tables
from kernels.muon.forward import launch_step
from kernels.muon.op import muon_step, step_on_gpu
from kernels.muon.products import sum_of_partial_sums
from kernels.muon.reference import MuonSettings, muon_step_reference
from kernels.tiles import FP_FUSION
from tests.gpus import DEVICE, ON_GPU, USES_GPU, needs_gpu
from tests.parity.operators import assert_registered
from tests.parity.tolerances import TOLERANCES, assert_parity

pytestmark = USES_GPU

SETTINGS = MuonSettings(0.9, True, 3, (3.4445, -4.775, 2.0315))
# Wide and tall, of one tile and of several, of odd sizes, and twice the same.
SHAPES = [(64, 24, 3, 3), (10, 27), (70, 33), (10, 27), (5, 300), (128, 16, 1, 1), (3, 5, 3, 3)]


class Tensors(NamedTuple):
    weights: list[torch.Tensor]
    momenta: list[torch.Tensor]
    gradients: list[torch.Tensor]

    def clone(self, dtype: torch.dtype = torch.float32) -> "Tensors":
        return Tensors(*([tensor.to(dtype, copy=True) for tensor in some] for some in self))


@pytest.fixture(autouse=True)
def no_kept_layouts() -> Iterator[None]:
    """Let a test change the sizes of chunks and classes."""
    yield
    tables.layout_of.cache_clear()


def tensors_of(
    shapes: Sequence[tuple[int, ...]], memory_format: torch.memory_format = torch.channels_last
) -> Tensors:
    generator = torch.Generator().manual_seed(0)

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(DEVICE)
        return values.contiguous(memory_format=memory_format) if len(shape) == 4 else values

    return Tensors(*([tensor(shape) for shape in shapes] for _ in range(3)))


def scalar(value: float | None) -> torch.Tensor | None:
    return None if value is None else torch.tensor(value, device=DEVICE)


def assert_kernels(
    tensors: Tensors,
    dtype: torch.dtype,
    settings: MuonSettings = SETTINGS,
    found_inf: float | None = None,
    renormalise: float | None = None,
) -> None:
    """Assert that a step of the kernels, with iterations of this dtype, is that of float64 arithmetic.

    Without decay and renormalisation a weight changes by its update alone, of which bfloat16 changes a bit.
    """
    before, actual, expected = tensors.clone(), tensors.clone(), tensors.clone(torch.float64)
    lr = torch.tensor(0.1, device=DEVICE)
    decay = 0.3 if dtype is torch.float32 else 0.0
    rest = decay, settings, scalar(found_inf), scalar(renormalise)
    launch_step(*actual, lr, *rest, dtype=dtype)
    muon_step_reference(*expected, lr.double(), *rest, dtype=torch.float64)
    kind = "muon change" if ON_GPU else "muon change, interpreted"
    for mine, truth in zip(actual.momenta, expected.momenta, strict=True):
        largest = truth.abs().max().clamp(min=1)
        assert_parity(mine.double() / largest, truth / largest, "muon momentum", torch.float32)
    for mine, truth, old in zip(actual.weights, expected.weights, before.weights, strict=True):
        if dtype is torch.float32:
            assert_parity(mine.double(), truth, "muon weights", torch.float32)
        else:
            assert (mine - truth).norm() <= TOLERANCES[kind, dtype].rtol * (truth - old).norm()
    for mine, given in zip(actual.gradients, before.gradients, strict=True):
        assert torch.equal(mine, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_kernels(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    assert_kernels(tensors_of(SHAPES, memory_format), dtype)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS._replace(nesterov=False, momentum=0.3, steps=1),
        SETTINGS._replace(steps=2, coefficients=(3.0, -3.2, 1.2)),
    ],
)
def test_settings(settings: MuonSettings) -> None:
    assert_kernels(tensors_of(SHAPES[:4]), torch.float32, settings)


@pytest.mark.parametrize("renormalise", [0.0, 1.0])
def test_renormalised_weights(renormalise: float) -> None:
    tensors = tensors_of(SHAPES[:4])
    assert_kernels(tensors, torch.float32, found_inf=0.0, renormalise=renormalise)


def test_many_matrices_and_two_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several launches go through the weights, and the matrices of more than 20 rows have large tiles."""
    monkeypatch.setattr(tables, "_MATRICES", 2)
    monkeypatch.setattr(tables, "BLOCKS", ((64, 20), (128, None)))
    shapes = [(10, 27), (70, 33), (30, 70), (12, 12), (66, 130)]
    layout = tables.layout_of(tuple(shapes), DEVICE)
    assert [len(layout.chunks), len(layout.classes)] == [3, 2]
    assert_kernels(tensors_of(shapes), torch.float32, renormalise=1.0)


@triton.jit
def _sum_kernel(sums_ptr, out_ptr, first, count):
    tl.store(out_ptr, sum_of_partial_sums(sums_ptr, first, count))


def test_partial_sums_of_a_large_matrix() -> None:
    """They are more than are added at a time; those of other matrices are not added."""
    sums = torch.arange(2200.0, device=DEVICE)
    total = torch.zeros((), device=DEVICE)
    _sum_kernel[(1,)](sums, total, 3, 2101, **FP_FUSION)
    assert total == sums[3:2104].sum()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-9, 1e12])
def test_gradients_of_any_size(scale: float) -> None:
    """The norm is at least 1e-7, and nothing overflows or becomes NaN."""
    tensors = tensors_of([(10, 27)])
    for some in (*tensors.gradients, *tensors.momenta):
        some.mul_(scale)
    assert_kernels(tensors, torch.float32)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("renormalise", [None, 1.0])
@pytest.mark.parametrize("poison", [torch.inf, torch.nan])
def test_an_overflow_leaves_everything_alone(poison: float, renormalise: float | None) -> None:
    tensors = tensors_of(SHAPES[:3])
    tensors.gradients[1][0, 0] = poison
    before = tensors.clone()
    arguments = torch.tensor(0.1, device=DEVICE), 0.3, SETTINGS, scalar(1.0), scalar(renormalise)
    for step in (launch_step, muon_step_reference):
        step(*tensors, *arguments)
        for some, old in zip(tensors[:2], before[:2], strict=True):
            assert all(torch.equal(mine, other) for mine, other in zip(some, old, strict=True))


@needs_gpu("too slow in the interpreter")
@pytest.mark.parametrize("steps", [3, 5])
def test_the_matrices_of_networks(steps: int) -> None:
    """40 matrices, more than a launch takes, up to those of ResNet-18 and a bottleneck's."""
    shapes = [(64, 24, 3, 3), (256, 64, 3, 3), (256, 256, 3, 3), (512, 512, 3, 3), (512, 256, 1, 1)] * 7
    shapes += [(2048, 512, 1, 1), (512, 2048, 1, 1), (384, 384, 3, 3), (16, 16, 3, 3), (1000, 512)]
    assert_kernels(tensors_of(shapes), torch.bfloat16, SETTINGS._replace(steps=steps), 0.0, 0.0)


@needs_gpu()
def test_captured_steps_are_those_of_the_operator() -> None:
    """Bit for bit: small and large matrices run on two streams, and a replay finds new gradients."""
    tensors = tensors_of([(64, 64, 3, 3), (512, 256, 3, 3), (10, 27), (300, 400)])
    arguments = torch.tensor(0.1, device=DEVICE), 0.3, SETTINGS, scalar(0.0), scalar(1.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured, eager = tensors.clone(), tensors.clone()
        muon_step(*tensors, *arguments)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            muon_step(*captured, *arguments)
        for _ in range(3):
            graph.replay()
            muon_step(*eager, *arguments)
            for some in (*captured.gradients, *eager.gradients):
                some.mul_(-0.5).add_(0.1)
        torch.cuda.synchronize()
    for some, others in zip(captured, eager, strict=True):
        assert all(torch.equal(mine, other) for mine, other in zip(some, others, strict=True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_kernels_take_tensors_of_any_strides(channels_last: bool) -> None:
    """A gradient in another order than its weight, and a weight with gaps, are copied."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    tensors = tensors_of([(6, 4, 3, 3), (8, 12)], memory_format)
    given = tensors.clone()
    other = torch.contiguous_format if channels_last else torch.channels_last
    given.gradients[0] = given.gradients[0].contiguous(memory_format=other)
    for some in given:
        some[1] = torch.stack([some[1], some[1]], dim=-1)[..., 0].T.contiguous().T
    arguments = torch.tensor(0.1, device=DEVICE), 0.3, SETTINGS
    strides = [some.stride() for some in (*given.weights, *given.momenta)]
    step_on_gpu(tensors, *arguments)
    step_on_gpu(given, *arguments)
    for some, others in zip(given[:2], tensors[:2], strict=True):
        assert all(torch.equal(mine, other) for mine, other in zip(some, others, strict=True))
    assert strides == [some.stride() for some in (*given.weights, *given.momenta)]


def test_operator_moves_the_tensors_that_it_is_given() -> None:
    tensors = tensors_of(SHAPES[:4])
    actual, expected = tensors.clone(), tensors.clone()
    arguments = torch.tensor(0.1, device=DEVICE), 0.3, SETTINGS, scalar(0.0), scalar(1.0)
    muon_step(*actual, *arguments)
    (launch_step if ON_GPU else muon_step_reference)(*expected, *arguments)
    for some, others, old in zip(actual, expected, tensors, strict=True):
        assert all(torch.equal(mine, other) for mine, other in zip(some, others, strict=True))
        assert torch.equal(some[0], old[0]) == (some is actual.gradients)


@pytest.mark.parametrize("which", [1, 2])
def test_reference_takes_tensors_of_any_strides(which: int) -> None:
    """A momentum or a gradient may be in another order in memory than its weight."""
    tensors = tensors_of([(6, 4, 3, 3)])
    given = tensors.clone()
    given[which][0] = given[which][0].contiguous()
    for some in (tensors, given):
        muon_step_reference(*some, torch.tensor(0.1, device=DEVICE), 0.3, SETTINGS)
    for some, others in zip(given[:2], tensors[:2], strict=True):
        assert torch.equal(some[0], others[0])


def test_no_matrices() -> None:
    muon_step([], [], [], torch.tensor(0.1), 0.3, SETTINGS)


def test_operator_is_registered_soundly() -> None:
    tensors = tensors_of([(6, 4, 3, 3), (8, 12)])
    rest = torch.tensor(0.1, device=DEVICE), 0.3, *SETTINGS, scalar(0.0), scalar(1.0)
    assert_registered(torch.ops.quickres.muon_step.default, (*tensors, *rest))


@pytest.mark.parametrize(
    ("weight", "gradient", "steps", "lr", "message"),
    [
        (torch.zeros(4), torch.zeros(4), 3, 0.1, r"weights\[0\], its momentum and its gradient must be"),
        (torch.zeros(4, 3), torch.zeros(3, 4), 3, 0.1, "of one shape"),
        (torch.zeros(4, 3).half(), torch.zeros(4, 3).half(), 3, 0.1, "must be float32"),
        (torch.zeros(4, 3), torch.zeros(4, 3), 0, 0.1, r"settings\.steps must be at least 1, not 0"),
        (torch.zeros(4, 3), torch.zeros(4, 3), 3, 1, "lr must be float32 on cpu, not torch.int64"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    weight: torch.Tensor, gradient: torch.Tensor, steps: int, lr: float, message: str
) -> None:
    settings = SETTINGS._replace(steps=steps)
    with pytest.raises(ValueError, match=message):
        muon_step([weight], [weight.clone()], [gradient], torch.tensor(lr), 0.0, settings)


def test_the_tables_of_a_captured_step_are_kept():
    """Each parameter group has a layout, and `optimizer.layer_decay` makes many groups."""
    cpu = torch.device("cpu")
    first = tables.layout_of(((2, 3),), cpu)
    for columns in range(4, 204):
        tables.layout_of(((2, columns),), cpu)
    assert tables.layout_of(((2, 3),), cpu) is first
