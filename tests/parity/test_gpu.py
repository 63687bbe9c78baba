"""What only a GPU can show: DALI's streams, the captured step, fp16 with its scaler."""

from collections.abc import Iterator

import pytest
import torch

from pipeline.build import build_state, captures, set_backends
from pipeline.config import AugmentConfig, Config, load_config
from pipeline.data import Batch, Loader, build_loaders, load_splits
from pipeline.data.base import Transform
from pipeline.data.dali import DaliLoader
from pipeline.data.reference import ArraySource, ReferenceLoader
from pipeline.data.sampling import Shard, TrainSampler
from pipeline.distributed import connect
from pipeline.step import Step
from tests.parity.tolerances import assert_parity

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

PADDING, CUTOUT, NUM_SAMPLES = 4, 16, 2000


@pytest.fixture(autouse=True)
def _own_stream() -> Iterator[None]:
    """As in training: the captured step must not run on the default stream."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


def _sampler(batch_size: int) -> TrainSampler:
    augment = AugmentConfig(crop_padding=PADDING, cutout=CUTOUT)
    return TrainSampler(NUM_SAMPLES, batch_size, Shard(), 3, (32, 32), augment)


def _transform(dtype: torch.dtype) -> Transform:
    return Transform((0.49, 0.48, 0.44), (0.24, 0.25, 0.26), dtype, True, PADDING, CUTOUT)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("batch_size", [96, 1024])
def test_dali_on_the_gpu_is_right_under_a_slow_consumer(dtype: torch.dtype, resident: bool, batch_size: int) -> None:
    """Batches are handed over without a copy: one overwritten early would show when the reader is late."""
    device = torch.device("cuda", torch.cuda.current_device())
    images = torch.randint(256, (NUM_SAMPLES, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(NUM_SAMPLES) % 10
    given = images.to(device) if resident else images
    loader = DaliLoader(given, labels.to(device), _sampler(batch_size), _transform(dtype), device)
    oracle = ReferenceLoader(ArraySource(images), labels, _sampler(batch_size), _transform(dtype), torch.device("cpu"))
    for _ in range(3):
        got: list[Batch] = []
        for batch in loader:
            torch.cuda._sleep(2_000_000)
            got.append(Batch(*(tensor.clone() for tensor in (batch.images, batch.labels, batch.valid, batch.indices))))
            del batch
        for batch, expected in zip(got, oracle, strict=True):
            assert torch.equal(batch.indices.cpu(), expected.indices)
            assert torch.equal(batch.labels.cpu(), expected.labels)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert_parity(batch.images.cpu(), expected.images, "loader, DALI on the GPU", dtype)


def _config(*overrides: str) -> Config:
    tiny = ["data.dataset=synthetic", "data.num_samples=2048", "data.batch_size=64", "model.name=resnet20", "optimizer.lr=0.05"]
    return load_config(overrides=[*tiny, "runtime.deterministic=true", *overrides])


def _start(config: Config) -> tuple[Step, Loader]:
    set_backends(config)
    torch._dynamo.reset()
    processes = connect(config)
    splits = load_splits(config.data, config.seed)
    loaders = build_loaders(config, splits, processes.device, processes.shard)
    state = build_state(config, splits, processes)
    step = Step(config, state, lambda _: config.optimizer.lr, captures(config.compile, processes.device))
    return step, loaders.train


def _losses(config: Config, num_steps: int = 20) -> torch.Tensor:
    step, loader = _start(config)
    losses = [step(batch).loss.clone() for batch, _ in zip(loader, range(num_steps), strict=False)]
    assert len(losses) == num_steps and step.recompilations == 0
    return torch.stack(losses).cpu()


@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp16"])
def test_captured_and_compiled_steps_train_like_the_eager_one(mode: str) -> None:
    eager = _losses(_config(f"precision.mode={mode}", "compile.mode=none"))
    compiled = _losses(_config(f"precision.mode={mode}", "compile.mode=default"))
    captured = _losses(_config(f"precision.mode={mode}", "compile.mode=reduce-overhead"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[mode]
    assert_parity(compiled, eager, "20 losses, compiled", dtype)
    assert_parity(captured, compiled, "20 losses, captured", dtype)


@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_an_overflow_skips_exactly_that_update(mode: str) -> None:
    step, loader = _start(_config("precision.mode=fp16", f"compile.mode={mode}", "precision.init_scale=1024.0"))
    state = step._state

    stream = iter(loader)
    for _ in range(6):
        step(next(stream))
    before = {name: value.clone() for name, value in state.raw_model.named_parameters()}
    momentum = [value["momentum_buffer"].clone() for value in state.optimizer.state.values()]
    batch = next(stream)
    output = step(Batch(torch.full_like(batch.images, float("inf")), batch.labels, batch.valid, batch.indices))
    assert output.found_inf.item() == 1
    assert state.precision.loss_scale() == 512
    assert all(torch.equal(value, before[name]) for name, value in state.raw_model.named_parameters())
    assert all(torch.equal(new["momentum_buffer"], old) for new, old in zip(state.optimizer.state.values(), momentum, strict=True))
    assert state.totals.values[3:].tolist() == [1, 1]


def test_the_first_update_may_be_the_skipped_one() -> None:
    """Torch's fused SGD would leave the momentum of a skipped first update uninitialised."""
    step, loader = _start(_config("precision.mode=fp16", "compile.mode=none", "precision.init_scale=1099511627776.0"))
    outputs = [step(batch) for batch, _ in zip(loader, range(30), strict=False)]
    assert step._state.totals.values[3].item() > 0
    assert torch.isfinite(outputs[-1].loss)
    assert all(torch.isfinite(parameter).all() for parameter in step._state.raw_model.parameters())


@pytest.mark.parametrize("mode", ["none", "default", "reduce-overhead"])
def test_the_host_waits_for_no_step(mode: str) -> None:
    config = _config("precision.mode=fp16", f"compile.mode={mode}", "optimizer.clip_norm=1")
    # cuDNN's deterministic algorithms are no part of the question
    step, loader = _start(config.model_copy(update={"runtime": config.runtime.model_copy(update={"deterministic": False})}))
    stream = iter(loader)
    for _ in range(6):
        step(next(stream))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step(next(stream))
    finally:
        torch.cuda.set_sync_debug_mode("default")
