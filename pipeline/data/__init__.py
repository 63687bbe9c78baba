"""Reads data sets and loads batches: from files to device tensors that are ready for the model."""

from pipeline.data.batch import Batch, Loader
from pipeline.data.build import Loaders, build_loaders, build_test_loader, decoder_for
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.image_set import ImageSet, Samples
from pipeline.data.datasets.load import check_class_names, check_image_size, load_splits, load_test
from pipeline.data.datasets.splits import Splits
from pipeline.data.loaders.base import Transform
from pipeline.data.sampling.batch_plan import Shard

__all__ = [
    "Batch",
    "FileSet",
    "ImageSet",
    "Loader",
    "Loaders",
    "Samples",
    "Shard",
    "Splits",
    "Transform",
    "build_loaders",
    "build_test_loader",
    "check_class_names",
    "check_image_size",
    "decoder_for",
    "load_splits",
    "load_test",
]
