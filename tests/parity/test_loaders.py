"""Every loader delivers the same batches, from any position and on any number of processes."""

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pipeline.config import AugmentConfig, PlainAugment
from pipeline.data import Batch, Loader, Transform, build_loaders
from pipeline.data.loaders import dali_arrays as dali
from pipeline.data.loaders.dali_arrays import DaliArrayLoader
from pipeline.data.loaders.fused import FusedLoader
from pipeline.data.loaders.reference import ArraySource, ReferenceLoader
from pipeline.data.loaders.synthetic import SyntheticLoader
from pipeline.data.sampling.batch_plan import BatchPlan, EvalSampler, Sampler, Shard, TrainSampler
from pipeline.data.sampling.padded_crops import draw_padded_crops
from pipeline.errors import UserError
from tests.parity.batches import assert_all_same, assert_same, by_ranks, on_cpu
from tests.parity.loaders import (
    BACKENDS,
    CPU,
    HEIGHT,
    MEAN,
    STD,
    WIDTH,
    Build,
    build_dali,
    build_reference,
    make_images,
    oracle_batch,
)
from tests.parity.tolerances import assert_parity
from tests.patience import PATIENCE_S
from tests.tiny import tiny_config, tiny_splits

AUGMENT = PlainAugment(crop_padding=2, flip=True, cutout=4)
NUM_SAMPLES, BATCH_SIZE, STEPS = 34, 6, 5


def train_loader(
    build: Build,
    shard: Shard | None = None,
    batch_size: int = BATCH_SIZE,
    augment: AugmentConfig = AUGMENT,
) -> Loader:
    images, labels = make_images(NUM_SAMPLES)
    sampler = TrainSampler(NUM_SAMPLES, batch_size, shard or Shard(), 5, (HEIGHT, WIDTH), augment)
    return build(images, labels, sampler, transform_of(augment))


def transform_of(augment: AugmentConfig) -> Transform:
    reflect, sizes = augment.crop_border == "reflect", (augment.crop_padding, augment.cutout)
    return Transform(MEAN, STD, torch.float32, True, *sizes, reflect, augment.brightness, augment.contrast)


def eval_loader(build: Build, shard: Shard | None = None) -> Loader:
    images, labels = make_images(NUM_SAMPLES)
    return build(
        images,
        labels,
        EvalSampler(NUM_SAMPLES, BATCH_SIZE, shard or Shard()),
        Transform(MEAN, STD, torch.float32),
    )


def epochs_of(loader: Loader, count: int) -> list[list[Batch]]:
    return [list(loader) for _ in range(count)]


def check_against_the_oracle(epochs: list[list[Batch]], augment: AugmentConfig) -> None:
    images, labels = make_images(NUM_SAMPLES)
    transform = transform_of(augment)
    op = "loader, brightness and contrast" if augment.jitters else "loader"
    for epoch, batches in enumerate(epochs):
        draws = draw_padded_crops(5, epoch, NUM_SAMPLES, (HEIGHT, WIDTH), augment)
        assert len(batches) == STEPS
        for step, batch in enumerate(batches):
            indices = draws.order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            plan = BatchPlan(indices, np.ones(BATCH_SIZE, bool), draws.table()[indices])
            assert batch.indices.tolist() == indices.tolist()
            assert batch.labels.tolist() == labels[indices].tolist()
            assert batch.valid.all()
            assert (batch.labels.dtype, batch.indices.dtype, batch.valid.dtype) == (
                torch.int64,
                torch.int64,
                torch.bool,
            )
            assert_parity(batch.images.contiguous(), oracle_batch(images, plan, transform), op, torch.float32)


CHANGES: list[dict[str, Any]] = [
    {"cutout_mode": "clipped"},
    {"cutout_mode": "inside"},
    {"flip": "alternating", "crop_border": "reflect"},
    {"brightness": 0.4, "contrast": 0.3},
    {"flip": "alternating", "crop_border": "reflect", "cutout": 0, "contrast": 0.3},
]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("build", BACKENDS)
def test_epochs_follow_the_draws(build: Build, changes: dict[str, Any]):
    augment = AUGMENT.model_copy(update=changes)
    check_against_the_oracle(epochs_of(train_loader(build, augment=augment), 3), augment)


@pytest.mark.parametrize("changes", CHANGES)
def test_the_fused_loader_follows_them_too(changes: dict[str, Any]):
    """Without a GPU it runs in Triton's interpreter.

    In float32 it agrees with DALI's CPU backend bit for bit.
    """
    augment = AUGMENT.model_copy(update=changes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def build(images: torch.Tensor, labels: torch.Tensor, sampler: Sampler, transform: Transform) -> Loader:
        return FusedLoader(images.to(device), labels.to(device), sampler, transform, 5, augment, Shard())

    epochs = [
        [on_cpu(batch) for batch in epoch] for epoch in epochs_of(train_loader(build, augment=augment), 2)
    ]
    check_against_the_oracle(epochs, augment)
    for one, other in zip(epochs, epochs_of(train_loader(build_dali, augment=augment), 2), strict=True):
        assert_all_same(one, other)


@pytest.mark.parametrize("jitter", [{}, {"brightness": 0.4}], ids=["plain", "jitter"])
def test_all_loaders_show_the_samples_of_a_balanced_epoch_alike(jitter: dict[str, Any]):
    images, labels = make_images(NUM_SAMPLES)
    rare = torch.tensor([0] * 25 + [1] * 7 + [2] * 2)
    augment = AUGMENT.model_copy(update=jitter)

    def sampler() -> TrainSampler:
        return TrainSampler(NUM_SAMPLES, BATCH_SIZE, Shard(), 5, (HEIGHT, WIDTH), augment, rare.numpy())

    transform = transform_of(augment)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fused = FusedLoader(images.to(device), rare.to(device), sampler(), transform, 5, augment, Shard())
    of_dali, of_reference = (
        build(images, rare, sampler(), transform) for build in (build_dali, build_reference)
    )
    for _ in range(2):
        for step, (one, two, three) in enumerate(zip(fused, of_dali, of_reference, strict=True)):
            assert_same(on_cpu(one), two)
            assert_parity(two.images, three.images, "loader", two.images.dtype)
            assert_same(two, replace(three, images=two.images))
            assert torch.equal(two.labels, rare[two.indices]), step
    assert len(labels) == NUM_SAMPLES


@pytest.mark.parametrize(
    "changes",
    [{"crop_padding": 0}, {"flip": False}, {"cutout": 0}, {"crop_padding": 0, "flip": False, "cutout": 0}],
)
@pytest.mark.parametrize("build", BACKENDS)
def test_what_is_off_is_off(build: Build, changes: dict[str, Any]):
    augment = AUGMENT.model_copy(update=changes)
    check_against_the_oracle(epochs_of(train_loader(build, augment=augment), 1), augment)


@pytest.mark.parametrize("build", BACKENDS)
def test_a_later_step_gives_what_reading_through_gives(build: Build):
    through = epochs_of(train_loader(build), 3)
    for epoch, step in ((0, 0), (0, 3), (1, 0), (2, 4), (1, 2)):
        loader = train_loader(build)
        batches = loader.batches_from(epoch * STEPS + step)
        rest = list(islice(batches, STEPS - step))
        assert_all_same(rest, through[epoch][step:])
        if epoch < 2:
            assert_same(next(batches), through[epoch + 1][0])


@pytest.mark.parametrize("build", BACKENDS)
def test_one_loader_may_go_on_and_back(build: Build):
    through, loader = epochs_of(train_loader(build), 2), train_loader(build)
    for epoch, step in ((1, 3), (0, 1), (0, 1), (1, 4), (0, 0)):
        assert_same(next(loader.batches_from(epoch * STEPS + step)), through[epoch][step])


@pytest.mark.parametrize("build", BACKENDS)
def test_torch_s_generator_is_left_alone(build: Build):
    """Dropout uses torch's generator: a resumed run restarts its loader, which must not advance it."""
    before = torch.get_rng_state()
    loader = train_loader(build)
    next(loader.batches_from(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("build", BACKENDS)
def test_after_an_iterator_that_is_left_comes_the_next_epoch(build: Build):
    through, loader = epochs_of(train_loader(build), 3), train_loader(build)
    first = list(islice(loader, 2))
    second, third = list(loader), list(loader)
    assert_all_same([*first, *second, *third], [*through[0][:2], *through[1], *through[2]])


@pytest.mark.parametrize("build", BACKENDS)
def test_the_stream_goes_on_over_the_end_of_an_epoch(build: Build):
    through, loader = epochs_of(train_loader(build), 2), train_loader(build)
    assert_all_same(islice(loader.batches_from(STEPS - 1), 2), (through[0][-1], through[1][0]))
    with pytest.raises(AssertionError):
        next(loader.batches_from(-1))


@pytest.mark.parametrize("build", BACKENDS)
def test_batches_that_are_kept_are_not_overwritten(build: Build):
    """DALI's outputs are delivered without a copy."""
    saved, loader = [], train_loader(build)
    for epoch in range(3):
        saved += [(batch.images, batch.images.clone()) for batch in loader]
        assert len(saved) == STEPS * (epoch + 1)
    assert all(torch.equal(image, copy) for image, copy in saved)


@pytest.mark.parametrize(("group_images", "prefetch"), [(1, 1), (1, 3), (12, 1), (12, 2), (1024, 64)])
def test_grouping_and_prefetching_change_nothing(
    group_images: int, prefetch: int, monkeypatch: pytest.MonkeyPatch
):
    def build(images: torch.Tensor, labels: torch.Tensor, sampler: Sampler, transform: Transform) -> Loader:
        return DaliArrayLoader(images, labels, sampler, transform, CPU, num_threads=2, prefetch=prefetch)

    augment = AUGMENT.model_copy(update={"brightness": 0.4})
    expected = epochs_of(train_loader(build_dali, augment=augment), 2)
    monkeypatch.setattr(dali, "_GROUP_IMAGES", group_images)
    actual = epochs_of(train_loader(build, augment=augment), 2)
    for one, other in zip(actual, expected, strict=True):
        assert_all_same(one, other)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("build", BACKENDS)
def test_global_batches_do_not_depend_on_the_processes(build: Build, world_size: int):
    joined = by_ranks(world_size, lambda shard: train_loader(build, shard))
    assert_all_same(joined, train_loader(build))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("build", BACKENDS)
def test_evaluation_sees_every_sample_once_and_marks_the_padding(build: Build, world_size: int):
    images, labels = make_images(NUM_SAMPLES)
    batches = list(by_ranks(world_size, lambda shard: eval_loader(build, shard)))
    assert [int(batch.valid.sum()) for batch in batches] == [6, 6, 6, 6, 6, 4]
    assert batches[-1].valid.tolist() == [True] * 4 + [False] * 2
    indices = torch.cat([batch.indices[batch.valid] for batch in batches])
    assert indices.tolist() == list(range(NUM_SAMPLES))
    assert torch.equal(torch.cat([batch.labels[batch.valid] for batch in batches]), labels)
    plan, transform = (
        BatchPlan(np.arange(NUM_SAMPLES), np.ones(NUM_SAMPLES, bool), None),
        Transform(MEAN, STD, torch.float32),
    )
    seen = torch.cat([batch.images[batch.valid] for batch in batches]).contiguous()
    assert_parity(seen, oracle_batch(images, plan, transform), "loader", torch.float32)


@pytest.mark.parametrize("build", BACKENDS)
def test_every_evaluation_is_the_same(build: Build):
    first, second = epochs_of(eval_loader(build), 2)
    assert_all_same(first, second)


@pytest.mark.slow
def test_worker_processes_change_nothing_and_leave_nothing():
    expected = epochs_of(train_loader(build_reference), 2)
    loader = train_loader(
        lambda i, y, s, t: ReferenceLoader(ArraySource(i), y, s, t, CPU, num_workers=2, prefetch=2)
    )
    actual = islice(loader.batches_from(3), 2 * STEPS - 3)
    assert_all_same(actual, [*expected[0][3:], *expected[1]])
    workers = [worker for server in psutil.Process().children() for worker in server.children()]
    assert len(workers) == 2
    del loader
    assert psutil.wait_procs(workers, timeout=PATIENCE_S)[1] == []


# --- the synthetic loader, and loaders from a config ---


def synthetic(train: bool = True, dtype: torch.dtype = torch.float16) -> Loader:
    sampler = (
        TrainSampler(NUM_SAMPLES, 6, Shard(), 0, (8, 8), AUGMENT)
        if train
        else EvalSampler(NUM_SAMPLES, 6, Shard())
    )
    return SyntheticLoader((8, 8, 3), 4, sampler, Transform(MEAN, STD, dtype), CPU, seed=1)


def test_the_synthetic_loader_delivers_one_fixed_batch():
    (first, *others), again = epochs_of(synthetic(), 1)[0], next(iter(synthetic()))
    assert len(others) == STEPS - 1
    assert_same(first, again)
    assert all(batch.images is first.images for batch in others)
    assert (first.images.shape, first.images.dtype) == ((6, 3, 8, 8), torch.float16)
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert first.labels.min() >= 0 and first.labels.max() < 4
    assert first.images.float().mean().abs() < 0.1 and abs(first.images.float().std() - 1) < 0.1


def test_the_synthetic_loader_counts():
    assert len(list(synthetic())) == STEPS
    assert [int(batch.valid.sum()) for batch in synthetic(train=False)] == [6, 6, 6, 6, 6, 4]
    evaluation = synthetic(train=False)
    assert [[int(batch.valid.sum()) for batch in epoch][-1] for epoch in epochs_of(evaluation, 2)] == [4, 4]


@pytest.mark.parametrize(
    ("mode", "dtype"), [("fp32", torch.float32), ("bf16", torch.float16), ("fp16", torch.float16)]
)
@pytest.mark.parametrize("loader", ["dali", "reference", "synthetic"])
def test_types_and_layouts_follow_the_config(loader: str, mode: str, dtype: torch.dtype):
    config = tiny_config(
        f"data.loader={loader}", f"precision.mode={mode}", "data.holdout=8", "runtime.channels_last=false"
    )
    loaders = build_loaders(config, tiny_splits(config), CPU)
    assert loaders.holdout is not None
    assert (loaders.train.num_samples, loaders.holdout.num_samples, loaders.test.num_samples) == (32, 8, 8)
    for part in (loaders.train, loaders.holdout, loaders.test):
        batch = next(iter(part))
        assert batch.images.dtype == dtype and batch.images.is_contiguous()


def test_an_evaluation_batch_is_no_larger_than_the_set():
    config = tiny_config("data.eval_batch_size=1000")
    splits = tiny_splits(config)
    assert next(iter(build_loaders(config, splits, CPU).test)).images.shape[0] == 8
    shares = [
        build_loaders(
            tiny_config("data.eval_batch_size=999", "data.batch_size=9"), splits, CPU, Shard(rank, 3)
        ).test
        for rank in range(3)
    ]
    assert [next(iter(loader)).valid.tolist() for loader in shares] == [
        [True] * 3,
        [True] * 3,
        [True, True, False],
    ]


@pytest.mark.parametrize("padding", [7, 8])
def test_a_reflected_border_as_wide_as_the_image_is_refused(padding: int):
    config = tiny_config("augment.crop_border=reflect", f"augment.crop_padding={padding}")
    if padding < 8:
        assert build_loaders(config, tiny_splits(config), CPU).train
    else:
        with pytest.raises(UserError, match=r"augment.crop_padding: 8 .* at most 7"):
            build_loaders(config, tiny_splits(config), CPU)
