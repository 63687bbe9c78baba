"""What only a GPU can show: DALI's streams, the captured step, fp16 with its scaler."""

import pytest
import torch

from pipeline.config import Config, PlainAugment
from pipeline.data import Batch
from pipeline.data.loaders.base import Transform
from pipeline.data.loaders.dali_arrays import DaliArrayLoader
from pipeline.data.loaders.fused import FusedLoader
from pipeline.data.loaders.reference import ArraySource, ReferenceLoader
from pipeline.data.sampling.batch_plan import Shard, TrainSampler
from tests.gpus import NEEDS_GPU
from tests.parity.on_gpu import no_synchronisation, own_stream, small_config, start, train  # noqa: F401
from tests.parity.tolerances import assert_parity

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("own_stream")]

PADDING, CUTOUT, NUM_SAMPLES, NUM_EPOCHS = 4, 16, 2100, 6
DELAY = 20_000_000  # clock cycles: about 10 ms, several times what DALI takes for a batch


AUGMENT = PlainAugment(crop_padding=PADDING, cutout=CUTOUT)


JITTERED = AUGMENT.model_copy(update={"brightness": 0.14, "contrast": 0.13})


def _sampler(batch_size: int, augment: PlainAugment = AUGMENT) -> TrainSampler:
    return TrainSampler(NUM_SAMPLES, batch_size, Shard(), 3, (32, 32), augment)


def _transform(dtype: torch.dtype, augment: PlainAugment = AUGMENT) -> Transform:
    mean, std, jitter = (0.49, 0.48, 0.44), (0.24, 0.25, 0.26), (augment.brightness, augment.contrast)
    return Transform(mean, std, dtype, True, PADDING, CUTOUT, False, *jitter)


def _images() -> tuple[torch.Tensor, torch.Tensor, torch.device]:
    """Images and labels in host memory, and the device."""
    images = torch.randint(
        256, (NUM_SAMPLES, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return images, torch.arange(NUM_SAMPLES) % 10, torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("augment", [AUGMENT, JITTERED])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dali_on_the_gpu_applies_the_draws(dtype: torch.dtype, resident: bool, augment: PlainAugment) -> None:
    images, labels, device = _images()
    sampler, transform = _sampler(96, augment), _transform(dtype, augment)
    loader = DaliArrayLoader(
        images.to(device) if resident else images, labels.to(device), sampler, transform, device
    )
    oracle = ReferenceLoader(ArraySource(images), labels, sampler, transform, torch.device("cpu"))
    op = "loader, brightness and contrast" if augment.jitters else "loader, DALI on the GPU"
    for batch, expected in zip(loader, oracle, strict=True):
        assert torch.equal(batch.indices.cpu(), expected.indices) and torch.equal(
            batch.labels.cpu(), expected.labels
        )
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert_parity(batch.images.cpu(), expected.images, op, dtype)


class Late(DaliArrayLoader):
    """Its batches are prepared late: before each is fed, the stream that it is gathered on is held up."""

    def _feed(self) -> None:
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(DELAY)
        super()._feed()


@pytest.mark.parametrize("late", ["consumer", "producer", "both"])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("batch_size", [96, 512, 1024])
def test_dali_on_the_gpu_is_right_whoever_is_late(
    dtype: torch.dtype, resident: bool, batch_size: int, late: str
) -> None:
    """The host runs ahead of the device by all batches: memory reused too early shows as another image.

    The delays are like those of a GPU that several programs share in turns.
    """
    images, labels, device = _images()
    given, kind = images.to(device) if resident else images, DaliArrayLoader if late == "consumer" else Late
    loader = kind(given, labels.to(device), _sampler(batch_size), _transform(dtype), device)
    oracle = FusedLoader(
        images.to(device), labels.to(device), _sampler(batch_size), _transform(dtype), 3, AUGMENT, Shard()
    )
    got: list[Batch] = []
    for batch in (batch for _ in range(NUM_EPOCHS) for batch in loader):
        if late != "producer":
            torch.cuda._sleep(DELAY)
        got.append(
            Batch(*(tensor.clone() for tensor in (batch.images, batch.labels, batch.valid, batch.indices)))
        )
        del batch
    for batch, expected in zip(got, (batch for _ in range(NUM_EPOCHS) for batch in oracle), strict=True):
        assert torch.equal(batch.indices, expected.indices)
        assert torch.equal(batch.labels, expected.labels)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert_parity(batch.images, expected.images, "loader, DALI on the GPU", dtype)


def _losses(config: Config) -> torch.Tensor:
    return train(*start(config))


@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp16"])
def test_captured_and_compiled_steps_train_like_the_eager_one(mode: str) -> None:
    eager = _losses(small_config(f"precision.mode={mode}", "compile.mode=none"))
    compiled = _losses(small_config(f"precision.mode={mode}", "compile.mode=default"))
    captured = _losses(small_config(f"precision.mode={mode}", "compile.mode=reduce-overhead"))
    alone = _losses(small_config(f"precision.mode={mode}", "compile.mode=graph"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[mode]
    assert_parity(alone, eager, "20 losses, captured", dtype)
    assert_parity(compiled, eager, "20 losses, compiled", dtype)
    assert_parity(captured, compiled, "20 losses, captured", dtype)


@pytest.mark.parametrize("mode", ["none", "graph", "reduce-overhead"])
def test_an_overflow_skips_exactly_that_update(mode: str) -> None:
    step, loader = start(
        small_config("precision.mode=fp16", f"compile.mode={mode}", "precision.init_scale=1024.0")
    )
    state = step._state

    stream = iter(loader)
    for _ in range(6):
        step(next(stream))
    before = {name: value.clone() for name, value in state.model.named_parameters()}
    momentum = [value["momentum_buffer"].clone() for value in state.optimizer.state.values()]
    batch = next(stream)
    output = step(
        Batch(torch.full_like(batch.images, float("inf")), batch.labels, batch.valid, batch.indices)
    )
    assert output.found_inf.item() == 1
    assert state.precision.loss_scale() == 512
    assert all(torch.equal(value, before[name]) for name, value in state.model.named_parameters())
    assert all(
        torch.equal(new["momentum_buffer"], old)
        for new, old in zip(state.optimizer.state.values(), momentum, strict=True)
    )
    assert state.totals.values[3:].tolist() == [1, 1]


def test_the_first_update_may_be_the_skipped_one() -> None:
    """Torch's fused SGD would leave the momentum of a skipped first update uninitialised."""
    step, loader = start(
        small_config("precision.mode=fp16", "compile.mode=none", "precision.init_scale=1099511627776.0")
    )
    outputs = [step(batch) for batch, _ in zip(loader, range(30), strict=False)]
    assert step._state.totals.values[3].item() > 0
    assert torch.isfinite(outputs[-1].loss)
    assert all(torch.isfinite(parameter).all() for parameter in step._state.model.parameters())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("mode", ["none", "default", "graph", "reduce-overhead"])
def test_the_host_waits_for_no_step(mode: str) -> None:
    config = small_config("precision.mode=fp16", f"compile.mode={mode}", "optimizer.clip_norm=1")
    # cuDNN's deterministic algorithms may synchronise
    step, loader = start(
        config.model_copy(update={"runtime": config.runtime.model_copy(update={"deterministic": False})})
    )
    stream = iter(loader)
    for _ in range(6):
        step(next(stream))
    with no_synchronisation():
        for _ in range(4):
            step(next(stream))
    assert step._state.step == 10 and step.recompilations == 0
