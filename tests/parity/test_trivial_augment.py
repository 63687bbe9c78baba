"""Tests TrivialAugment in DALI against torchvision, operation by operation, and erasing in all loaders.

The reference loader applies torchvision's operations; it is compared with torchvision's own transform here.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from pipeline.config import Config
from pipeline.data import Batch, Loaders, Shard, Transform, build_loaders, load_splits
from pipeline.data.loaders.dali_arrays import DaliArrayLoader
from pipeline.data.loaders.reference import ArraySource, ReferenceLoader
from pipeline.data.loaders.trivial_augment import apply_trivial_augment, equalize_as_opencv
from pipeline.data.sampling.erasing import draw_erasing
from pipeline.data.sampling.trivial_augment import BINS, OPERATIONS, strengths_of
from pipeline.errors import UserError
from tests.gpus import NEEDS_GPU
from tests.parity.loaders import Prescribed
from tests.parity.tolerances import OPERATION_LEVELS
from tests.pictures import make_folder, picture
from tests.tiny import tiny_config

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda", 0), marks=NEEDS_GPU)]
SIZE = 48
STRENGTHS = (0, 1, 7, 15, 23, BINS - 1, -1, -2, -8, -16, -BINS)


def pictures(size: int = SIZE) -> np.ndarray:
    """Return a smooth picture, noise, and one with a few grey levels only: (3, H, W, 3) uint8."""
    smooth = np.asarray(picture(size, size).convert("RGB"))
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return np.stack([smooth, noise, noise // 64 * 20 + 90])


def torchvisions(image: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
    """Apply an operation as torchvision's own transform does after its draws."""
    transform = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    name = OPERATIONS[draws[0]]
    theirs = next(key for key in transform._AUGMENTATION_SPACE if key.lower() == name.replace("_", ""))
    (strength,) = strengths_of(draws[None]).tolist()
    strength = strength / 255 if name == "solarize" else strength
    arguments = strength, InterpolationMode.BILINEAR, transform._fill
    return torch.as_tensor(transform._apply_image_or_video_transform(image, theirs, *arguments))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_reference_is_torchvisions_transform(name: str):
    most, mean = (3, 1.0) if name == "equalize" else (0, 0.0)  # torchvision divides by whole numbers
    for image, strength in product(pictures(176)[:2], STRENGTHS):
        draws = np.array([OPERATIONS.index(name), strength], np.int32)
        pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        difference = (apply_trivial_augment(pixels, draws).int() - torchvisions(pixels, draws).int()).abs()
        assert difference.max() <= most and difference.float().mean() <= mean, (strength, difference.max())


def test_the_negative_is_equalised_as_opencv_does():
    for image in (*pictures(), np.full((SIZE, SIZE, 3), 7, np.uint8)):
        ours = equalize_as_opencv(torch.from_numpy(image).permute(2, 0, 1))
        channels = [np.ascontiguousarray(channel) for channel in image.transpose(2, 0, 1)]
        assert (ours.numpy() == np.stack([cv2.equalizeHist(channel) for channel in channels])).all()


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_dalis_operation_is_torchvisions(name: str, device: torch.device):
    """Without crop, flip and Cutout, in grey levels, with all operations in one batch."""
    number = OPERATIONS.index(name)
    images = torch.from_numpy(pictures())
    cases = [(image, number, strength) for image, strength in product(range(len(images)), STRENGTHS)]
    cases += [(0, other, 5) for other in range(len(OPERATIONS))]
    draws = np.array([(0, 0, 0, 0, 0, operation, strength) for _, operation, strength in cases], np.int32)
    of_case = images[[image for image, *_ in cases]]
    transform = Transform([0.0] * 3, [1 / 255] * 3, torch.float32, trivial_augment=True)
    sampler, labels = Prescribed(draws, len(draws)), torch.zeros(len(draws), dtype=torch.int64)
    loader = DaliArrayLoader(of_case.to(device), labels.to(device), sampler, transform, device, 2, 1)
    reference = ReferenceLoader(ArraySource(of_case), labels, sampler, transform, CPU)
    ours, theirs = next(iter(loader)).images.cpu(), next(iter(reference)).images
    difference = (ours - theirs).abs()[: len(cases) - len(OPERATIONS)]
    if name == "sharpness":  # torchvision leaves the outermost pixels alone
        difference = difference[:, :, 1:-1, 1:-1]
    most, mean, _ = OPERATION_LEVELS[name]
    assert difference.max() <= most and difference.mean() <= mean, (
        difference.amax((1, 2, 3)),
        difference.mean(),
    )
    if name != "identity":
        changed = (
            (theirs - of_case.permute(0, 3, 1, 2)).abs().flatten(1).amax(1)[: len(cases) - len(OPERATIONS)]
        )
        assert (changed > most).float().mean() > 0.5, "the operations do something"


# --- whole loaders --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("trivial"), train=16, test=2)


def memory_config(*keys: str) -> Config:
    defaults = ("data.image_size=24", "precision.mode=fp32", "data.num_threads=1", "data.eval_batch_size=4")
    given = {key.partition("=")[0] for key in keys}
    return tiny_config(*(key for key in defaults if key.partition("=")[0] not in given), *keys)


def streamed_config(root: Path, *keys: str) -> Config:
    return memory_config(
        *("data.dataset=folder", f"data.root={root}", "data.cache_below=8", "augment.cutout=8"), *keys
    )


def loaders(config: Config, shard: Shard | None = None, device: torch.device = CPU) -> Loaders:
    return build_loaders(config, load_splits(config.data, config.seed), device, shard)


def epochs(config: Config, count: int = 2, **arguments) -> Iterator[Batch]:
    train = loaders(config, **arguments).train
    for _ in range(count):
        yield from train


KEYS = ("augment.trivial_augment=true", "augment.repeats=2", "augment.erasing=0.5", "augment.crop_padding=3")


@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_loaders_agree_with_everything_switched_on(root: Path, kind: str):
    config = memory_config if kind == "memory" else lambda *keys: streamed_config(root, *keys)
    keys = KEYS if kind == "memory" else KEYS[:-1]
    differences = []
    pairs = zip(epochs(config(*keys)), epochs(config(*keys, "data.loader=reference")), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.images == 0, theirs.images == 0) or kind == "streamed"
        std = torch.tensor(loaders(config(*keys)).train._transform.std)[:, None, None]  # type: ignore[attr-defined]
        differences.append((ours.images - theirs.images).abs() * 255 * std)
    whole = torch.cat(differences)
    # one image in 14 is sharpened, with another border; streamed images are decoded by other libraries
    assert whole.mean() < (0.4 if kind == "memory" else 1.0)
    assert whole.flatten(1).mean(1).quantile(0.9) < (1.0 if kind == "memory" else 1.5)


@pytest.mark.parametrize("loader", ["dali", "reference"])
@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_batches_do_not_depend_on_processes_or_position(root: Path, kind: str, loader: str):
    config = memory_config(*KEYS, f"data.loader={loader}")
    if kind == "streamed":
        config = streamed_config(root, *KEYS[:-1], f"data.loader={loader}")
    alone = list(epochs(config))
    parts = [list(epochs(config, shard=Shard(rank, 2))) for rank in range(2)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    resumed = loaders(config).train.batches_from(len(alone) - 2)
    assert torch.equal(next(resumed).images, alone[-2].images)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("mode", ["fp32", "fp16"])
@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_erased_boxes_are_torchvisions(loader: str, mode: str, channels_last: bool):
    """Each loader's image with torchvision's `erase` is the loader's image with erasing."""
    keys = (
        f"data.loader={loader}",
        f"precision.mode={mode}",
        f"runtime.channels_last={channels_last}".lower(),
    )
    plain, erased = ([*epochs(memory_config(*keys, f"augment.erasing={p}"))] for p in (0.0, 0.7))
    count = 0
    for number, (one, other) in enumerate(zip(plain, erased, strict=True)):
        epoch = np.full(len(one.images), number // (len(plain) // 2))
        boxes = draw_erasing(memory_config().seed, one.indices.numpy(), epoch, (24, 24), 0.7)
        expected = [
            F.erase(image, *box, v=torch.zeros(()))
            for image, box in zip(one.images, boxes.tolist(), strict=True)
        ]
        assert torch.equal(torch.stack(expected), other.images)
        assert other.images.is_contiguous(memory_format=torch.channels_last) == channels_last
        count += (boxes[:, 2] > 0).sum()
    assert 0.5 < count / sum(len(batch.images) for batch in plain) < 0.9


@pytest.mark.parametrize("key", ["augment.trivial_augment=true", "augment.repeats=2"])
def test_fused_refuses_what_it_does_not_have(key: str):
    with pytest.raises(UserError, match=rf"{key.partition('=')[0]}: data\.loader=fused .* data\.loader=dali"):
        tiny_config("data.loader=fused", key)


class TestOnTheGpu:
    pytestmark = NEEDS_GPU

    def test_streamed_images_are_those_of_the_reference(self, root: Path):
        ours = epochs(streamed_config(root, *KEYS[:-1]), device=torch.device("cuda", 0))
        theirs = epochs(streamed_config(root, *KEYS[:-1], "data.loader=reference"))
        difference = torch.cat([(a.images.cpu() - b.images).abs() for a, b in zip(ours, theirs, strict=True)])
        assert difference.flatten(1).mean(1).quantile(0.9) < 0.1  # of about 60 grey levels

    def test_fused_erases_too(self):
        plain, erased = (
            list(
                epochs(
                    memory_config("data.loader=fused", f"augment.erasing={p}"), device=torch.device("cuda", 0)
                )
            )
            for p in (0.0, 0.7)
        )
        for one, other in zip(plain, erased, strict=True):
            changed = (one.images != other.images).flatten(1).any(1)
            assert ((other.images == 0) | (one.images == other.images)).all() and changed.any()
