"""Tests streamed folders: DALI against Pillow and torchvision, for any number of processes, any position."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.data import Batch, Shard, build_loaders, load_splits
from pipeline.data.files.decode import open_rgb
from pipeline.data.loaders.dali_decoding import is_chosen
from pipeline.data.loaders.dali_files import DaliFileLoader
from pipeline.data.loaders.reference import FileSource, ReferenceLoader
from pipeline.data.sampling.resized_crops import draw_resized_crops
from pipeline.errors import UserError
from tests.gpus import NEEDS_GPU
from tests.parity.batches import (
    NAMES,
    assert_all_same,
    assert_holds_no_more,
    assert_same,
    by_ranks,
    on_cpu,
)
from tests.parity.streamed import CPU, MEAN, STD, assert_close, config_of, grey_levels, loaders
from tests.pictures import make_folder, odd_pictures, pictures_of_formats


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("stream"), train=16, test=6, odd=True)


def test_dali_shows_what_pillow_shows(root: Path):
    ours, theirs = loaders(root), loaders(root, "data.loader=reference")
    assert isinstance(ours.train, DaliFileLoader) and isinstance(theirs.train, ReferenceLoader)
    sizes = []
    for split in ("train", "train", "train", "test"):
        for actual, expected in zip(getattr(ours, split), getattr(theirs, split), strict=True):
            assert torch.equal(actual.indices, expected.indices) and torch.equal(actual.valid, expected.valid)
            assert torch.equal(actual.labels, expected.labels)
            assert actual.images.is_contiguous(memory_format=torch.channels_last)
            assert_close(actual.images, expected.images, "streamed, DALI's CPU backend")
            sizes.append(actual.images.shape[-1])
    assert sizes == [32] * 5 + [48] * 4 + [48] * 3


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=NEEDS_GPU)], ids=str)
def test_every_format_is_shown_alike(tmp_path: Path, device: torch.device):
    root = make_folder(tmp_path / "root", train=1, test=1)
    for name, content in pictures_of_formats().items():
        (root / "train/b" / name).write_bytes(content)
    backend = "streamed, DALI on the GPU" if device.type == "cuda" else "streamed, DALI's CPU backend"
    batch = 2 + len(pictures_of_formats())
    keys = (f"data.batch_size={batch}", "augment.progressive=[]", "data.on_bad_image=stop")
    expected, shown = loaders(root, *keys, "data.loader=reference"), loaders(root, *keys, device=device)
    (theirs,), (ours,) = list(expected.train), list(shown.train)
    assert len(ours.images) == batch and torch.equal(ours.indices.cpu(), theirs.indices)
    assert_close(ours.images.cpu(), theirs.images, backend)


def test_pillow_shows_what_torchvision_shows(root: Path):
    """The boxes have the same meaning as in torchvision."""
    config = config_of(root, "data.loader=reference", "augment.cutout=0")
    splits = load_splits(config.data, 3)
    files, built = splits.train, build_loaders(config, splits, CPU)
    sampler, transform = built.train._sampler, built.train._arguments[3]  # type: ignore[attr-defined]
    plan = sampler.plan(0, 0)
    for index, draws in zip(plan.indices, plan.draws, strict=True):
        top, left, height, width, flip = draws[:5].tolist()
        image = F.resized_crop(open_rgb(files.file(index)), top, left, height, width, [32, 32])  # type: ignore[union-attr]
        image = v2.functional.pil_to_tensor(F.horizontal_flip(image) if flip else image)
        expected = F.normalize(image.float(), [255 * m for m in MEAN], [255 * s for s in STD])
        assert torch.equal(FileSource(files)(index, draws, plan, transform), expected)  # type: ignore[arg-type]
    resize = v2.Compose([v2.Resize(55), v2.CenterCrop(48), v2.PILToTensor()])  # 48 / 0.875
    for batch in built.test:
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            expected = resize(open_rgb(splits.test.file(index))).float()  # type: ignore[union-attr]
            assert (
                grey_levels(image) - expected
            ).abs().max() <= 2.01  # Pillow rounds after each of the two directions


def test_half_precision_is_the_rounded_single(root: Path):
    for single, half in zip(loaders(root).train, loaders(root, "precision.mode=fp16").train, strict=True):
        assert half.images.dtype == torch.float16
        torch.testing.assert_close(half.images.float(), single.images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_batches_do_not_depend_on_processes_threads_or_position(root: Path, loader: str):
    key = f"data.loader={loader}"
    whole = loaders(root, key).train
    alone = [batch for _ in range(2) for batch in whole]
    for world_size in (2, 3):
        joined = by_ranks(world_size, lambda shard: loaders(root, key, shard=shard).train)
        assert_all_same(joined, alone[: whole.steps_per_epoch])
    threads = ("data.num_threads=3", "data.prefetch=1") if loader == "dali" else ()
    other = loaders(root, key, *threads).train
    for position in (4, 0, 0, 1):
        assert_all_same(islice(other.batches_from(position), 2), alone[position : position + 2])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once(root: Path, world_size: int):
    parts = [loaders(root, shard=Shard(rank, world_size)).test for rank in range(world_size)]
    seen = torch.cat([batch.indices[batch.valid] for part in parts for batch in part])
    assert sorted(seen.tolist()) == list(range(parts[0].num_samples)) and parts[0].num_samples == 12 + len(
        odd_pictures()
    )


def test_batches_that_are_kept_are_not_overwritten(root: Path):
    saved = [(batch.images, batch.images.clone()) for batch in loaders(root).train]
    assert all(torch.equal(image, copy) for image, copy in saved)


def test_evaluation_may_be_larger_than_training(root: Path):
    built = loaders(root, "data.eval_image_size=64", "data.eval_crop=1.0")
    for part in (
        built,
        loaders(root, "data.eval_image_size=64", "data.eval_crop=1.0", "data.loader=synthetic"),
    ):
        assert next(iter(part.test)).images.shape[2:] == (64, 64)


def test_synthetic_images_grow_as_the_others_do(root: Path):
    built = loaders(root, "data.loader=synthetic")
    assert [batch.images.shape[-1] for _ in range(2) for batch in built.train] == [32] * 5 + [48]
    assert next(built.train.batches_from(built.train.steps_per_epoch + 2)).images.shape[-1] == 48


def test_synthetic_images_of_a_size_do_not_depend_on_the_sizes_before(root: Path):
    through, continued = (
        loaders(root, "data.loader=synthetic", "augment.progressive=[[0st, 16], [1st, 32], [2st, 48]]")
        for _ in "ab"
    )
    assert_same(list(through.train)[2], next(continued.train.batches_from(2)))


@pytest.mark.parametrize("key", ["augment.color_jitter=0.4", "augment.randaugment=2"])
def test_what_dali_draws_changes_the_colours_and_nothing_else(
    root: Path, key: str, caplog: pytest.LogCaptureFixture
):
    plain, coloured = loaders(root).train, loaders(root, key)
    assert "drawn by DALI" in caplog.text
    for one, other in zip(plain, coloured.train, strict=True):
        assert torch.equal(one.indices, other.indices) and one.images.shape == other.images.shape
        assert (one.images != other.images).any()
    again = next(iter(loaders(root, key).train))
    assert_same(again, next(iter(loaders(root, key).train)))
    assert_same(next(iter(coloured.test)), next(iter(loaders(root).test)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.loader=reference", "augment.randaugment=2"],
            r"augment\.randaugment: .*data\.loader=reference; use data\.loader=dali",
        ),
        (["data.cache_below=1024"], r"augment\.progressive: is for streamed images"),
        (
            ["data.cache_below=1024", "augment.progressive=[]", "augment.color_jitter=0.1"],
            r"augment\.color_jitter: is for streamed",
        ),
        (["augment.brightness=0.1"], r"augment\.brightness: is for images in memory.*augment\.color_jitter"),
        (["augment.contrast=0.1"], r"augment\.contrast: is for images in memory"),
        (
            ["data.cache_below=1024", "augment.progressive=[]", "data.eval_crop=0.5"],
            r"data\.eval_crop: is for streamed",
        ),
        (
            ["data.cache_below=1024", "augment.progressive=[]", "data.eval_image_size=64"],
            r"data\.eval_image_size: is for streamed",
        ),
        (
            ["data.cache_below=1024", "augment.progressive=[]", "augment.crop_scale=[0.5, 1.0]"],
            r"augment\.crop_scale: is for streamed",
        ),
    ],
)
def test_keys_that_do_not_go_together(root: Path, overrides: list[str], message: str):
    with pytest.raises(UserError, match=message):
        loaders(root, *overrides)


def test_fused_refuses_streamed_folders(root: Path):
    config = config_of(root, "data.loader=fused")
    splits = load_splits(config.data, config.seed)
    with pytest.raises(
        UserError, match=r"data\.loader: fused .* streamed from their files; use data\.loader=dali"
    ):
        build_loaders(config, splits, torch.device("cuda", 0))


@pytest.mark.slow
def test_worker_processes_change_nothing(root: Path):
    alone = loaders(root, "data.loader=reference").train
    assert_all_same(loaders(root, "data.loader=reference", "data.num_threads=2").train, alone)


def test_a_loader_that_goes_on_elsewhere_draws_no_epoch_before(root: Path, monkeypatch: pytest.MonkeyPatch):
    epochs: list[int] = []

    def draw(seed: int, epoch: int, *others: Any) -> Any:
        epochs.append(epoch)
        return draw_resized_crops(seed, epoch, *others)

    monkeypatch.setattr("pipeline.data.sampling.stream_plan.draw_resized_crops", draw)
    train = loaders(root).train
    next(train.batches_from(7 * train.steps_per_epoch))
    assert epochs and min(epochs) == 7


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])  # one part may be empty
def test_a_batch_is_divided_between_decoders_and_put_together(
    share: float, root: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both parts are decoded by the CPU here: the pixels are those of an undivided batch."""
    shares, expected = [], [list(getattr(loaders(root), part)) for part in ("train", "test")]

    def noted(*arguments: Any) -> np.ndarray:
        shares.append(is_chosen(*arguments))
        return shares[-1]

    def on_cpu(self: DaliFileLoader, decoder: str) -> dict[str, str]:
        return {"device": "cpu"}

    monkeypatch.setattr(DaliFileLoader, "_options_of", on_cpu)
    monkeypatch.setattr("pipeline.data.loaders.dali_files.is_chosen", noted)
    divided = loaders(root, f"data.gpu_share={share}")
    for part, batches in zip(("train", "test"), expected, strict=True):
        loader: Any = getattr(divided, part)
        loader._decoder, loader._conditional = "both", True
        for actual, wanted in zip(loader, batches, strict=True):
            assert torch.equal(actual.images, wanted.images) and torch.equal(actual.indices, wanted.indices)
    assert abs(np.concatenate(shares).mean() - share) < 0.1


def test_a_sample_is_always_decoded_by_the_same_hardware():
    indices = np.random.default_rng(0).permutation(10_000)
    chosen = is_chosen(indices, 0.3)
    assert (is_chosen(indices[:50], 0.3) == chosen[:50]).all()
    assert all(abs(part.mean() - 0.3) < 0.15 for part in np.split(chosen, 100))
    assert not is_chosen(indices, 0.0).any() and is_chosen(indices, 1.0).all()


@pytest.mark.slow
def test_memory_and_files_stay_flat(tmp_path: Path):
    """After many short epochs a leak of one epoch would be visible."""
    train = loaders(make_folder(tmp_path / "root", train=24), "augment.progressive=[]").train
    assert_holds_no_more(train, 30, 150)


def test_pillow_agrees_on_what_a_box_is() -> None:
    """`crop` and then `resize` do not read pixels outside of the box."""
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) * 10)
    assert np.asarray(image.crop((1, 1, 3, 3)).resize((1, 1), Image.Resampling.BILINEAR)).item() == 75


# --- on a GPU ---

DECODERS = {
    "by CUDA": "data.hw_decoder_load=0.0",
    "by the decoder unit": "data.hw_decoder_load=1.0",
    "by the CPU": "data.decoder=cpu",
    "by both": "data.decoder=both",  # a share of the smaller images by the GPU
    "by both, of every size": "data.decoder=both data.gpu_share=0.5",
}
gpu = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Use a separate stream, as in training."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield torch.device("cuda", torch.cuda.current_device())


class TestOnGpu:
    pytestmark = NEEDS_GPU

    @gpu
    def test_dali_shows_what_pillow_shows_under_a_slow_consumer(
        self, root: Path, device: torch.device, decoder: str
    ):
        """Batches are delivered without a copy: a slow reader would see one that is overwritten too early."""
        keys = ["data.decoder=gpu"] if "decoder=" not in decoder else []
        config = config_of(root, *keys, *decoder.split(), "precision.mode=fp16")
        splits = load_splits(config.data, config.seed)
        ours, theirs = build_loaders(config, splits, device), loaders(root, "data.loader=reference")
        for split in ("train", "train", "train", "test"):
            got = []
            for batch in getattr(ours, split):
                torch.cuda._sleep(20_000_000)
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                got.append(Batch(*(getattr(batch, name).clone() for name in NAMES)))
                del batch
            for actual, expected in zip(map(on_cpu, got), getattr(theirs, split), strict=True):
                assert torch.equal(actual.indices, expected.indices) and torch.equal(
                    actual.labels, expected.labels
                )
                assert torch.equal(actual.valid, expected.valid)
                assert_close(actual.images, expected.images, "streamed, DALI on the GPU")

    @pytest.mark.parametrize("key", ["augment.color_jitter=0.4", "augment.randaugment=2"])
    def test_what_dali_draws_runs(self, root: Path, device: torch.device, key: str):
        config = config_of(root, key, "precision.mode=fp16")
        train = build_loaders(config, load_splits(config.data, config.seed), device).train
        assert all(torch.isfinite(batch.images).all() for batch in train)
