"""Refuses keys that contradict each other, with which a run would fail or would not be the intended one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.config.data import FileData, FolderData, SyntheticData
from pipeline.config.model import BOTTLENECK_NETWORKS, SMALLEST_IMAGES, library_of
from pipeline.config.optimizer import AdamwConfig
from pipeline.config.paths import is_utf8
from pipeline.config.schedule import StepSchedule

if TYPE_CHECKING:
    from pipeline.config.schema import Config


def check_together(config: "Config") -> None:
    """Check the keys against each other.

    Raises:
        ValueError: two keys contradict each other; names both and the remedy.
    """
    for check in _CHECKS:
        message = check(config)
        if message is not None:
            raise ValueError(message)


def _statistics(config: "Config") -> str | None:
    mean, std = config.data.mean, config.data.std
    if (mean is None) != (std is None):
        return "data.mean and data.std: give both or neither"
    if mean is None or std is None:
        return None
    if len(mean) != len(std):
        return "data.mean and data.std: give one number per channel in each"
    return "data.std: must be above 0 in every channel" if min(std) <= 0 else None


def _holdout(config: "Config") -> str | None:
    holdout = config.data.holdout
    if isinstance(holdout, float) and holdout >= 1:
        return f"data.holdout: a fraction is below 1; for a count write {int(holdout)}"
    return None


def _cutout(config: "Config") -> str | None:
    side, size = config.augment.cutout, config.image_size
    return (
        f"augment.cutout: {side} is larger than the image ({size}); use a smaller box"
        if side > size
        else None
    )


def _small_images(config: "Config") -> str | None:
    name = config.model.name
    least = SMALLEST_IMAGES.get(name, 1)
    for size, key in {config.image_size: "data.image_size", **config.other_image_sizes}.items():
        if size < least:
            return f"{key}: {name} needs images of {least} pixels or more, got {size}; give larger images"
    return None


def _lists(config: "Config") -> str | None:
    data = config.data
    if isinstance(data, FolderData) and (data.train_list is None) != (data.test_list is None):
        return "data.train_list and data.test_list: give both or neither"
    return None


def _ranges(config: "Config") -> str | None:
    augment = config.augment
    for key, (low, high) in (("crop_scale", augment.crop_scale), ("crop_ratio", augment.crop_ratio)):
        if low > high:
            return f"augment.{key}: [{low:g}, {high:g}] goes from more to less; give the smaller number first"
    return None


def _progressive(config: "Config") -> str | None:
    augment, size = config.augment, config.image_size
    if not augment.progressive or not isinstance(config.data, FileData):
        return None
    last = augment.progressive[-1][1]
    if last != size:
        return f"augment.progressive: ends at {last} pixels, data.image_size is {size}; make them equal"
    if augment.mix not in ("none", "mixup"):
        reason = f"{augment.mix} cuts images of one size, but augment.progressive changes it"
        return f"augment.mix: {reason}; use mixup, or no mix"
    return None


def _fused(config: "Config") -> str | None:
    augment = config.augment
    for key, value in (("trivial_augment", augment.trivial_augment), ("repeats", augment.repeats > 1)):
        if value and config.data.loader == "fused":
            return (
                f"augment.{key}: data.loader=fused does not have it; use data.loader=dali, or remove the key"
            )
    return None


def _milestones(config: "Config") -> str | None:
    if isinstance(config.schedule, StepSchedule) and not config.schedule.milestones:
        return "schedule.milestones: `schedule.name: step` needs at least one, such as [80ep, 120ep]"
    return None


def _nesterov(config: "Config") -> str | None:
    optimizer = config.optimizer
    if not isinstance(optimizer, AdamwConfig) and optimizer.nesterov and optimizer.momentum == 0:
        return "optimizer.nesterov: needs optimizer.momentum above 0; set it, or optimizer.nesterov=false"
    return None


def _own_kernels(config: "Config") -> str | None:
    model = config.model
    if library_of(model.name):
        return None  # the keys have no effect
    if model.sync_batchnorm and model.fused_norm:
        return (
            "model.sync_batchnorm: the kernels of model.fused_norm use one process's statistics only; set "
            "model.fused_norm=false"
        )
    for key in ("fused_norm", "fused_stem"):
        if getattr(model, key) and not config.runtime.channels_last:
            remedy = f"set runtime.channels_last=true, or model.{key}=false"
            return f"model.{key}: works on channels_last activations; {remedy}"
    return None


def _groups(config: "Config") -> str | None:
    model = config.model
    channels = 64 * model.width
    if model.name in BOTTLENECK_NETWORKS and channels % model.groups:
        return (
            f"model.groups: does not divide the {channels} channels of the first bottleneck; use a power of 2"
        )
    return None


def _run_folder(config: "Config") -> str | None:
    folder = config.log.dir
    reason = f"{folder!a} is not UTF-8, and safetensors and TensorBoard cannot write there"
    return None if is_utf8(folder) else f"log.dir: {reason}; choose another folder"


def _compile(config: "Config") -> str | None:
    mode = config.compile.mode
    if config.runtime.device == "cpu" and mode in ("reduce-overhead", "max-autotune"):
        return (
            f"compile.mode: {mode} captures CUDA graphs, but runtime.device is cpu; use compile.mode=default"
        )
    if config.compile.backend != "inductor" and mode == "max-autotune":
        return "compile.mode: max-autotune needs compile.backend=inductor"
    return None


def _views(config: "Config") -> str | None:
    views = config.evaluation.views
    if config.evaluation.flip_tta and views != "none":
        return (
            "evaluation.flip_tta: is the older form of evaluation.views=mirror, but evaluation.views="
            f"{views} is given too; set evaluation.flip_tta=false, or remove the key"
        )
    return None


def _balance(config: "Config") -> str | None:
    if config.data.sampler != "balanced":
        return None
    if config.loss.class_weights == "balanced":
        return (
            "loss.class_weights: balanced and data.sampler: balanced each make up for rare classes, and "
            "together they would do it twice; keep one of them"
        )
    if config.augment.flip == "alternating":
        return (
            "augment.flip: alternating is for images that come once an epoch, and data.sampler=balanced "
            "repeats some; set augment.flip=true"
        )
    return None


def _samples(config: "Config") -> str | None:
    data = config.data
    if isinstance(data, SyntheticData) and data.loader != "synthetic" and data.num_samples < data.batch_size:
        remedy = f"use data.batch_size={data.num_samples} or less"
        return f"data.num_samples: {data.num_samples} is less than one batch; {remedy}"
    return None


_CHECKS: tuple[Callable[["Config"], str | None], ...] = (
    *(_statistics, _holdout, _cutout, _small_images, _lists, _ranges, _progressive, _milestones, _nesterov),
    *(_own_kernels, _fused, _groups, _run_folder, _compile, _views, _balance, _samples),
)
