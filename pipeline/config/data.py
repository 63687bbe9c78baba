"""The sections of a recipe that say which images are shown, and how."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Section, as_pairs, as_tuple
from pipeline.config.durations import Duration, Size

Resolution = Annotated[int, Field(ge=8, le=4096)]
Resolutions = Annotated[tuple[tuple[Duration, Resolution], ...], BeforeValidator(as_pairs)]
_Share = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[tuple[_Share, _Share], BeforeValidator(as_tuple)]
_RatioPart = Annotated[float, Field(ge=0.01, le=100)]
Ratio = Annotated[tuple[_RatioPart, _RatioPart], BeforeValidator(as_tuple)]
Channels = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...],
    BeforeValidator(as_tuple),
    Field(min_length=1, max_length=4),
]


class DataConfig(Section):
    dataset: Literal["digits", "cifar10", "cifar100", "folder", "synthetic"] = Field(
        default="cifar10", description="Data set to train on"
    )
    root: str = Field(
        default="data",
        min_length=1,
        description="Folder of the data set; for `folder` it holds `train/CLASS/` and `test/CLASS/` or `val/`",
    )
    train_list: str | None = Field(
        default=None,
        min_length=1,
        description="`folder`: file of `path label` lines in place of `train/`, paths absolute or from `data.root`",
    )
    test_list: str | None = Field(
        default=None,
        min_length=1,
        description="`folder`: likewise in place of `test/`; needs `data.train_list`",
    )
    class_names: str | None = Field(
        default=None,
        min_length=1,
        description="`folder`: file of `CLASS name` lines, how the classes are called in what is shown",
    )
    on_bad_image: Literal["stop", "skip"] = Field(
        default="stop",
        description="`folder`: files that cannot be read end the run before it begins, or are left out; both list them",
    )
    cache_below: int = Field(
        default=64,
        ge=1,
        le=1024,
        description="`folder`: where no side of an image is longer, in pixels, all are decoded once; otherwise all are streamed",
    )
    cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of decoded images and statistics; default `.quickres/` in `data.root`",
    )
    loader: Literal["dali", "fused", "reference", "synthetic"] = Field(
        default="dali",
        description="Backend that loads and augments a batch; `fused` is our own Triton kernels, on a GPU only",
    )
    batch_size: int = Field(
        default=512, ge=1, le=2**20, description="Images per optimizer step, over all processes"
    )
    eval_batch_size: int = Field(
        default=1000, ge=1, le=2**20, description="Images per evaluation step, over all processes"
    )
    holdout: int | float = Field(
        default=0,
        ge=0,
        description="Training images held out, as a count or a fraction, that `best` looks at; 0: none",
    )
    mean: Channels | None = Field(
        default=None, description="Channel means of the pixels / 255; default: computed from the training set"
    )
    std: Channels | None = Field(
        default=None,
        description="Channel standard deviations of the pixels / 255; default: computed from the training set",
    )
    resident_limit: Size = Field(
        default="8GiB",
        description="Largest uint8 training set kept on the device; a larger one stays in host memory",
    )
    num_threads: int = Field(
        default=4,
        ge=1,
        le=256,
        description="CPU threads of the loader (worker processes with `reference`; 1 there: none)",
    )
    prefetch: int = Field(default=3, ge=1, le=64, description="Batches prepared ahead of the step")
    image_size: int = Field(
        default=32,
        ge=8,
        le=4096,
        description="Height and width of the images, in pixels, for `digits`, `folder` and `synthetic`",
    )
    eval_image_size: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="Streamed folders: height and width in evaluation, in pixels; default: `data.image_size`",
    )
    eval_crop: float = Field(
        default=0.875,
        gt=0,
        le=1,
        description="Streamed folders: share of the resized shorter side that the centre crop of evaluation keeps (224 of 256)",
    )
    decoder: Literal["gpu", "cpu"] = Field(
        default="gpu",
        description="Streamed folders on a GPU: who decodes the files. `gpu` delivers most and spares the CPU; `cpu` leaves the whole "
        "GPU to the training step, and wants about 14 cores for each GPU",
    )
    hw_decoder_load: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="`data.decoder: gpu`: share of the JPEG files for the GPU's decoder unit, where it has one; the rest CUDA decodes",
    )
    num_classes: int = Field(default=10, ge=2, le=100_000, description="Classes of the `synthetic` data set")
    num_samples: int = Field(
        default=50_000,
        ge=1,
        le=10**8,
        description="Training images of the `synthetic` data set; a fifth as many for testing",
    )


# Images that each mixed image is made of.
MIX_SOURCES = {"none": 1, "mixup": 2, "cutmix": 2, "ricap": 4}


class AugmentConfig(Section):
    crop_padding: int = Field(
        default=4,
        ge=0,
        le=512,
        description="Black pixels around the image before the random crop, per side; 0: no crop. Not for streamed folders",
    )
    crop_scale: Scale = Field(
        default=(0.08, 1.0),
        description="Streamed folders: area of the random crop, as a share of the image, from and to",
    )
    crop_ratio: Ratio = Field(
        default=(0.75, 4 / 3), description="Streamed folders: width by height of the random crop, from and to"
    )
    flip: bool = Field(default=True, description="Mirror every other image, at random")
    cutout: int = Field(default=0, ge=0, le=1024, description="Side of the Cutout box in pixels; 0: no box")
    cutout_mode: Literal["clipped", "inside"] = Field(
        default="clipped",
        description="`clipped`: the box's centre is anywhere, its edges may fall outside (the paper); `inside`: all of the box is inside",
    )
    mix: Literal["none", "mixup", "cutmix", "ricap"] = Field(
        default="none", description="Mix images of a batch, and their labels"
    )
    mix_alpha: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Both parameters of the Beta distribution of a mixed image's share",
    )
    mix_probability: float = Field(default=1.0, gt=0, le=1, description="Share of the steps that mix")
    progressive: Resolutions = Field(
        default=(),
        description="Streamed folders: `[when, size]` pairs: height and width of training images from then on; ends at `data.image_size`",
    )
    color_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Streamed folders, `dali`: brightness, contrast and saturation change by up to this share; drawn by DALI",
    )
    randaugment: int = Field(
        default=0,
        ge=0,
        le=10,
        description="Streamed folders, `dali`: RandAugment operations for each image; 0: none; drawn by DALI",
    )
    randaugment_magnitude: int = Field(
        default=9, ge=0, le=30, description="Strength of RandAugment's operations, out of 30"
    )
