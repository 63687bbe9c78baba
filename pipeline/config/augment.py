"""Defines the section `augment`: images of a batch that are mixed (`augment.mix`) bring further keys."""

import reprlib
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Kinds, Section, as_pairs, as_tuple
from pipeline.config.durations import Duration

Resolution = Annotated[int, Field(ge=8, le=4096)]
Resolutions = Annotated[tuple[tuple[Duration, Resolution], ...], BeforeValidator(as_pairs)]
_AreaFraction = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[tuple[_AreaFraction, _AreaFraction], BeforeValidator(as_tuple)]
_RatioPart = Annotated[float, Field(ge=0.01, le=100)]
Ratio = Annotated[tuple[_RatioPart, _RatioPart], BeforeValidator(as_tuple)]

# Number of images that each mixed image is made of.
MIX_SOURCES = {"none": 1, "mixup": 2, "cutmix": 2, "ricap": 4, "mixup_or_cutmix": 2}


def _check_flip(value: object) -> object:
    if isinstance(value, bool) or value == "alternating":
        return value
    raise ValueError(f"{reprlib.repr(value)} is none of true, false, alternating")


Flip = Annotated[Literal[True, False, "alternating"], BeforeValidator(_check_flip)]


class _AnyAugment(Section):
    """The keys that do not depend on `augment.mix`."""

    crop_padding: int = Field(
        default=4,
        ge=0,
        le=512,
        description="Pixels of border around the image before the random crop, per side; 0: no crop. Not for "
        "streamed images",
    )
    crop_border: Literal["black", "reflect"] = Field(
        default="black",
        description="The border of `augment.crop_padding`: black, or the image mirrored at its edges",
    )
    crop_scale: Scale = Field(
        default=(0.08, 1.0),
        description="Streamed images: area of the random crop, as a fraction of the image, from and to",
    )
    crop_ratio: Ratio = Field(
        default=(0.75, 4 / 3), description="Streamed images: width by height of the random crop, from and to"
    )
    flip: Flip = Field(
        default=True,
        description="Mirror every other image, at random; `alternating`: an image is mirrored in every other "
        "epoch, at random in the first one (Jordan 2024, arXiv:2404.00498, section 3.6)",
    )
    cutout: int = Field(default=0, ge=0, le=1024, description="Side of the Cutout box in pixels; 0: no box")
    cutout_mode: Literal["clipped", "inside"] = Field(
        default="clipped",
        description="`clipped`: the box's centre is anywhere, its edges may fall outside (the paper); "
        "`inside`: all of the box is inside",
    )
    brightness: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="A normalised image x becomes (x + b) (1 + c), but its Cutout box does not change: b is "
        "uniform from minus this to this (after Hive's cifar10-speedrun). Not for streamed images",
    )
    contrast: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="c in `augment.brightness`: uniform from minus this to this. Not for streamed images",
    )
    erasing: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Fraction of the images in which a box, of 2 to 33 % of the area, becomes the mean "
        "colour (random erasing, as in torchvision)",
    )
    trivial_augment: bool = Field(
        default=False,
        description="TrivialAugment: one operation for each image, such as a rotation or more contrast, of "
        "random strength (torchvision's wide space); `dali` and `reference`",
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Showings of each image in a batch, each augmented in its own way; an epoch then shows a "
        "part of the images (repeated augmentation, Hoffer et al. 2019, arXiv:1901.09335); not `fused`",
    )
    progressive: Resolutions = Field(
        default=(),
        description="Streamed images: `[when, size]` pairs: height and width of training images from then "
        "on; ends at `data.image_size`",
    )
    color_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Streamed images, `dali`: brightness, contrast and saturation change by up to this "
        "fraction; drawn by DALI",
    )
    randaugment: int = Field(
        default=0,
        ge=0,
        le=10,
        description="Streamed images, `dali`: RandAugment operations for each image; 0: none; drawn by DALI",
    )
    randaugment_magnitude: int = Field(
        default=9, ge=0, le=30, description="Strength of RandAugment's operations, out of 30"
    )

    @property
    def jitters(self) -> bool:
        """Return True if brightness or contrast of images in memory change."""
        return self.brightness > 0 or self.contrast > 0


class PlainAugment(_AnyAugment):
    mix: Literal["none"] = "none"


class _Mixing(_AnyAugment):
    """The keys that all kinds of mixing have."""

    mix_alpha: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Both parameters of the Beta distribution of an image's fraction of the mixed image",
    )
    mix_probability: float = Field(default=1.0, gt=0, le=1, description="Fraction of the steps that mix")


class MixAugment(_Mixing):
    mix: Literal["mixup", "cutmix", "ricap"]


class MixupOrCutmixAugment(_Mixing):
    mix: Literal["mixup_or_cutmix"]
    cutmix_alpha: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="`augment.mix_alpha` of the steps with CutMix; `mix_alpha` is that of Mixup",
    )
    cutmix_share: float = Field(
        default=0.5, gt=0, lt=1, description="Fraction of the steps that mix with CutMix; the others: Mixup"
    )


AnyMixAugment = MixAugment | MixupOrCutmixAugment
AugmentConfig = Annotated[
    PlainAugment | MixAugment | MixupOrCutmixAugment,
    Field(discriminator="mix"),
    Kinds("mix", "none", "Mix images of a batch, and their labels"),
]
