"""Defines the training that ours and the programs of others are all asked for, and refuses what they cannot
do."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.config import Config, FileData, FolderData, SgdConfig, SmoothSchedule, path_of, to_steps
from pipeline.config.model import IMAGENET_NETWORKS, library_of
from pipeline.data.datasets.counts import Counts
from pipeline.data.files.class_folders import default_test_folder
from pipeline.errors import UserError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of the channels
_CROP_RATIO = (3 / 4, 4 / 3)  # of the programs of others
_PLAIN = {None: "null", (): "[]"}  # how values are written on the command line
_SMALL = 64  # pixels, the longer side: photographs are larger


@dataclass(frozen=True)
class Task:
    """One training: the settings that all programs share, in the words of our config.

    Attributes:
        config: of our run.
        data: a folder with `train/CLASS/*` and `val/CLASS/*`.
        counts: of its images.
        epochs: to train.
        workers: processes that load images for the programs of others.
        device: `cuda` or `cpu`.
    """

    config: Config
    data: Path
    counts: Counts
    epochs: int
    workers: int
    device: str

    @property
    def network(self) -> str:
        """The name that the libraries give to the network."""
        return network_of(self.config) or ""

    @property
    def optimizer(self) -> SgdConfig:
        assert isinstance(self.config.optimizer, SgdConfig), "others are refused before"
        return self.config.optimizer

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    @property
    def eval_size(self) -> int:
        """Height and width of the test images, in pixels."""
        size = self.config.data.eval_image_size if isinstance(self.config.data, FileData) else None
        return size or self.config.image_size

    @property
    def eval_crop(self) -> float:
        """Fraction of the resized shorter side that the centre crop keeps; small images are kept whole."""
        data = self.config.data
        return data.eval_crop if isinstance(data, FileData) and self.config.probably_streamed else 1.0

    @property
    def has_photographs(self) -> bool:
        """True if the images are larger than those of CIFAR and the like."""
        return self.config.image_size > _SMALL

    @property
    def full_steps(self) -> int:
        """Optimizer steps of one epoch, without the last, smaller batch."""
        return self.counts.train // self.batch_size

    @property
    def warmup_epochs(self) -> int:
        """Warm-up in whole epochs, which is the unit of the programs of others; at least one epoch is left
        for the rest."""
        return min(round(self._exact_warmup), self.epochs - 1)

    @property
    def _exact_warmup(self) -> float:
        """Warm-up of our run, in epochs."""
        schedule = self.config.schedule
        return to_steps(schedule.warmup, self.full_steps, self.epochs * self.full_steps) / self.full_steps

    @property
    def final_fraction(self) -> float:
        """The last learning rate as a fraction of the peak."""
        schedule = self.config.schedule
        return schedule.final_fraction if isinstance(schedule, SmoothSchedule) else 0.0

    @property
    def starts_as_identities(self) -> bool:
        """True if the scale of the last norm of each residual block of our network starts at 0; timm's
        ResNets do so by default, and torchvision's do not."""
        model = self.config.model
        library = library_of(model.name)
        return self.is_resnet and (model.zero_init_residual if library is None else library == "timm")

    @property
    def is_resnet(self) -> bool:
        """True for the ResNets that the libraries have too."""
        return self.network in IMAGENET_NETWORKS

    @property
    def compiles(self) -> bool:
        return self.config.compile.mode_on(self.device) != "none"

    @property
    def is_half(self) -> bool:
        return self.config.precision.mode != "fp32"

    def differences(self) -> Iterator[str]:
        """Yield what all programs of others do in another way, a phrase each."""
        config = self.config
        if config.schedule.name != "cosine":
            yield f"cosine schedule, not {config.schedule.name}"
        if abs(self.warmup_epochs - self._exact_warmup) > 0.01:
            yield f"warm-up of {self.warmup_epochs} epochs, not {self._exact_warmup:.2g}"
        if not config.probably_streamed:
            yield f"random resized crop, not a crop of images padded by {config.augment.crop_padding}"
        elif not all(map(partial(math.isclose, rel_tol=1e-3), config.augment.crop_ratio, _CROP_RATIO)):
            yield "crops with a ratio of width to height from 3/4 to 4/3"
        if config.augment.flip == "alternating":
            yield "flips at random, not alternating"
        if (config.data.mean, config.data.std) != _IMAGENET:
            yield "normalised by ImageNet's statistics, not by those of the data"


def network_of(config: Config) -> str | None:
    """Return the name that torchvision and timm give to the nearest network; None if they have none."""
    name = config.model.name
    if library_of(name):
        return name.partition("/")[2]
    return name if name in IMAGENET_NETWORKS else None


def check_config(config: Config) -> None:
    """Check that programs of others can train as this config says.

    Raises:
        UserError: a key asks for what they do not have.
    """
    for key, remedy in _refusals(config):
        raise UserError(f"{key}: the programs of others cannot do this; {remedy}")


def _refusals(config: Config) -> Iterator[tuple[str, str]]:
    data, augment, optimizer = config.data, config.augment, config.optimizer
    if not isinstance(data, FolderData):
        yield f"data.dataset={data.dataset}", "give data.dataset=folder data.root=DIR"
    elif data.train_list is not None:
        yield "data.train_list", "give class folders"
    elif data.classes:
        yield "data.classes", "give data.classes=[] and a folder with these classes alone"
    if network_of(config) is None:
        yield f"model.name={config.model.name}", f"give one of {', '.join(IMAGENET_NETWORKS)}"
    if not isinstance(optimizer, SgdConfig):
        yield f"optimizer.name={optimizer.name}", "give optimizer.name=sgd and its optimizer.lr"
    unused = {
        "data.holdout": (data.holdout, 0),
        "data.sampler": (data.sampler, "shuffled"),
        "augment.mix": (augment.mix, "none"),
        "augment.cutout": (augment.cutout, 0),
        "augment.brightness": (augment.brightness, 0),
        "augment.contrast": (augment.contrast, 0),
        "augment.erasing": (augment.erasing, 0),
        "augment.trivial_augment": (augment.trivial_augment, False),
        "augment.randaugment": (augment.randaugment, 0),
        "augment.color_jitter": (augment.color_jitter, 0),
        "augment.repeats": (augment.repeats, 1),
        "loss.name": (config.loss.name, "cross_entropy"),
        "loss.class_weights": (config.loss.class_weights, None),
        "optimizer.accumulate": (optimizer.accumulate, 1),
        "optimizer.clip_norm": (optimizer.clip_norm, None),
        "optimizer.groups": (optimizer.groups, ()),
        "optimizer.layer_decay": (optimizer.layer_decay, 1),
        "model.weights": (config.model.weights, None),
        "model.freeze": (config.model.freeze, ()),
        "model.blur_pool": (config.model.blur_pool, False),
        "model.stochastic_depth": (config.model.stochastic_depth, 0),
        "ema.decay": (config.ema.decay, None),
        "lookahead.every": (config.lookahead.every, None),
    }
    for key, (value, plain) in unused.items():
        if value != plain:
            yield key, f"give {key}={_PLAIN.get(plain, str(plain).lower())}"


def share_folder(config: Config, temporary: Path) -> Path:
    """Return a folder that holds the images as `train` and `val`, as programs of others expect them.

    It is `data.root` itself if the folders there have these names, and otherwise a folder of links to them.

    Args:
        config: with a folder of images.
        temporary: an empty folder.
    """
    data = config.data
    assert isinstance(data, FolderData), "others are refused before"
    root = path_of("data.root", data.root).resolve()
    test = data.test_folder or default_test_folder(root)
    if (data.train_folder, test) == ("train", "val"):
        return root
    (temporary / "train").symlink_to(root / data.train_folder)
    (temporary / "val").symlink_to(root / test)
    return temporary
