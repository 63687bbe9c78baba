"""Defines the section `data`: one class for each kind of data set."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import FilePath, Kinds, OptionalFilePath, Section, as_tuple
from pipeline.config.durations import Size

Channels = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...],
    BeforeValidator(as_tuple),
    Field(min_length=1, max_length=4),
]


class _AnyData(Section):
    """The keys that all data sets have."""

    root: FilePath = Field(
        default="data",
        description="Folder of the data set; for `folder` it holds `train/CLASS/` and `test/CLASS/` or "
        "`val/`; for `shards` it holds `train-*.tar` or `train-*.parquet`, and may be an address",
    )
    cache_dir: OptionalFilePath = Field(
        default=None,
        description="Folder of decoded images and statistics; default `.quickres/` in `data.root`",
    )
    loader: Literal["dali", "fused", "reference", "synthetic"] = Field(
        default="dali",
        description="Backend that loads and augments a batch; `fused` is our own Triton kernels, on a GPU "
        "only",
    )
    batch_size: int = Field(
        default=512, ge=1, le=2**20, description="Images per optimizer step, over all processes"
    )
    sampler: Literal["shuffled", "balanced"] = Field(
        default="shuffled",
        description="`shuffled`: every training image once an epoch. `balanced`: every class equally "
        "often: the images of a rare class are repeated, some of a frequent one wait for a later epoch",
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
        description="Channel standard deviations of the pixels / 255; default: computed from the training "
        "set",
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


class CifarData(_AnyData):
    dataset: Literal["cifar10", "cifar100"] = "cifar10"


class _AnySize(_AnyData):
    image_size: int = Field(
        default=32, ge=8, le=4096, description="Height and width of the images, in pixels"
    )


class DigitsData(_AnySize):
    dataset: Literal["digits"] = "digits"


class FileData(_AnySize):
    """The keys of data sets that hold image files of any size: folders and shards."""

    class_names: OptionalFilePath = Field(
        default=None,
        description="File of `CLASS name` lines: the names of the classes in reports and figures",
    )
    on_bad_image: Literal["stop", "skip"] = Field(
        default="stop",
        description="Files that cannot be read end the run before it begins, or are left out; both list "
        "them. `skip` decodes every streamed file once to find damage inside, and caches the result",
    )
    cache_below: int = Field(
        default=64,
        ge=1,
        le=1024,
        description="Where no side of an image is longer, in pixels, all are decoded once; otherwise all are "
        "streamed",
    )
    eval_image_size: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="Streamed images: height and width in evaluation, in pixels; default: `data.image_size`",
    )
    eval_crop: float = Field(
        default=0.875,
        gt=0,
        le=1,
        description="Streamed images: fraction of the resized shorter side that the centre crop of "
        "evaluation keeps (224 of 256)",
    )
    decoder: Literal["auto", "gpu", "cpu", "both"] = Field(
        default="auto",
        description="Streamed images on a GPU: the device that decodes the files. `gpu` delivers most and "
        "spares the CPU; `cpu` leaves the whole GPU to the training step, and needs about 14 cores for each "
        "GPU; `both`: the CPU, and the GPU a share (`data.gpu_share`); `auto`: `cpu`, or `both` with smaller "
        "sizes in augment.progressive or with data.gpu_share, if there are threads and cores for it, "
        "otherwise `gpu`",
    )
    gpu_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="`data.decoder: both` or `auto`: fraction of the images that the GPU decodes; null: none "
        "at data.image_size and in evaluation, 1 - (size / data.image_size)^2 at smaller sizes, which the "
        "step takes faster",
    )
    hw_decoder_load: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Of the JPEG files that the GPU decodes, the fraction for its JPEG engines, where it "
        "has some; CUDA decodes the rest",
    )


class FolderData(FileData):
    dataset: Literal["folder"] = "folder"
    train_folder: FilePath = Field(
        default="train",
        description="Folder of the training images in `data.root`, with a folder for each class",
    )
    test_folder: OptionalFilePath = Field(
        default=None,
        description="Likewise for the test images; default: `test`, or `val` if `test` has no class folders",
    )
    classes: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="Class folders to use, by name; the others are left out. Default: all of them",
    )
    train_list: OptionalFilePath = Field(
        default=None,
        description="File of `path label` lines in place of `data.train_folder`; paths are absolute or from "
        "`data.root`",
    )
    test_list: OptionalFilePath = Field(
        default=None,
        description="Likewise in place of `data.test_folder`; needs `data.train_list`",
    )


class ShardData(FileData):
    dataset: Literal["shards"] = "shards"
    train_shards: OptionalFilePath = Field(
        default=None,
        description="Tar files (WebDataset) or Parquet files of encoded images: a pattern with braces or "
        "`*`, from `data.root`, absolute, or an address: `train-{000..146}.tar`. Default: the shards in "
        "`data.root` with `train` in their names, or in its folder `train`",
    )
    test_shards: OptionalFilePath = Field(
        default=None,
        description="Likewise for the test images; default: those with `test`, or else with `val`",
    )
    image_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Tar files: what follows the first dot in the name of an image (`jpg`); Parquet: its "
        "column. Default: the only one that fits",
    )
    label_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Likewise for the label; `json.label` is the field `label` of the member `json`. "
        "Default: `cls` in tar files; `label`, or the only column of class labels, in Parquet",
    )


class SyntheticData(_AnySize):
    dataset: Literal["synthetic"] = "synthetic"
    num_classes: int = Field(default=10, ge=2, le=100_000, description="Number of classes")
    num_samples: int = Field(
        default=50_000, ge=1, le=10**8, description="Training images; a fifth as many for testing"
    )


DataConfig = Annotated[
    CifarData | DigitsData | FolderData | ShardData | SyntheticData,
    Field(discriminator="dataset"),
    Kinds("dataset", "cifar10", "Data set to train on"),
]
