"""Reads image files. Small images are decoded once and cached; larger ones are read from their files."""

import hashlib
import io
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.atomic_io import write_whole
from pipeline.config import FileData, path_of
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.file_set import FileSet, read_centre
from pipeline.data.datasets.image_set import ImageSet, Samples
from pipeline.data.datasets.splits import RawSplits
from pipeline.data.datasets.statistics import channel_histogram
from pipeline.data.files.cache import BadImages, CachedArrays, read_entry, remove_unused, write_entry
from pipeline.data.files.cache_place import CachePlace, cannot_write
from pipeline.data.files.class_names import read_class_names
from pipeline.data.files.decode import decode_files, images_of_any_size
from pipeline.data.files.list_files import list_files, root_of
from pipeline.data.files.list_test_part import list_test_files
from pipeline.data.files.listing import Listing
from pipeline.data.files.many import try_all
from pipeline.data.files.reports import report_bad, report_damage
from pipeline.data.files.scan import Scan, read_scan, scan_files, spread
from pipeline.data.sampling.resized_crops import CentreView
from pipeline.errors import UserError
from pipeline.process.worker import workers_kept

_log = logging.getLogger(__name__)

# Raise this number when the same files give other pixels or sizes, or when the layout of the cache changes.
_FORMAT_VERSION = 4


@workers_kept()
def load_files(config: FileData, *, is_main: bool = True) -> RawSplits:
    """Read class folders, the files that list files name, or shards: see `list_files`.

    If no side of an image is longer than `data.cache_below`, all images are decoded to one size (see
    `decode_image`) and kept in `data.cache_dir`, by default `ROOT/.quickres`. Otherwise the images stay in
    their files, and only their sizes are kept in the cache. The name of an entry has a hash of all paths,
    sizes and modification times, so that a changed file leads to a new entry. Entries of older states of the
    files are removed when no run has opened them for 30 days.

    Args:
        config: the section `data`.
        is_main: True if this process may decode and write.

    Raises:
        UserError: folders that are not as described, images that cannot be read, a cache that cannot be
            written.
    """
    listing = list_files(config, is_main=is_main)
    names = listing.classes
    if config.class_names is not None:
        names = read_class_names(path_of("data.class_names", config.class_names), names)
    reader = _FileReader(listing, config, CachePlace.of(listing.root, config), is_main)
    scan = reader.scan()
    streamed = scan.longest_side > config.cache_below
    parts, histogram = reader.stream(scan) if streamed else reader.decode()
    return RawSplits(parts["train"], parts["test"], names, histogram)


@workers_kept()
def load_test_files(config: FileData, class_names: Sequence[str], *, streamed: bool) -> Samples:
    """Read the test images alone, for a network that has been trained: see `list_test_files`.

    Args:
        config: the section `data`.
        class_names: of the network, in label order.
        streamed: True if the network was trained on streamed files. The sizes of the test images do not
            decide it: they are shown to the network as in its own evaluation.

    Raises:
        UserError: as for `load_files`.
    """
    place = CachePlace.of(root_of(config), config).of_test_images().writable()
    listing = list_test_files(config, class_names, place)
    reader = _FileReader(listing, config.model_copy(update={"cache_below": 0}), place, is_main=True)
    parts, _ = reader.stream(reader.scan()) if streamed else reader.decode()
    return parts["test"]


class _FileReader:
    """Reads the files of a listing, from the cache if possible.

    Args:
        listing: the files.
        config, is_main: as for `load_files`.
        place: of the cache.
    """

    def __init__(self, listing: Listing, config: FileData, place: CachePlace, is_main: bool):
        self._listing, self._config, self._place, self._is_main = listing, config, place, is_main
        state = f"{_FORMAT_VERSION} {listing.key()} {config.cache_below}"
        self._key = hashlib.sha256(state.encode()).hexdigest()[:16]

    def scan(self) -> Scan:
        """Return the sizes of the images and the bad files."""
        config, decode_all = self._config, self._config.on_bad_image == "skip"
        kind = "scan-decoded" if decode_all else "scan"
        entry = self._place.entry(kind, self._key)
        scan = read_scan(entry, self._listing, discard_damaged=self._is_main)
        if scan is None:
            assert self._is_main, f"no cache {entry}: the main process has to build it first"
            try:
                options = config.num_threads, config.cache_below
                scan = scan_files(self._listing, entry, *options, decode_all=decode_all)
            except OSError as error:
                raise cannot_write(entry, error) from None
            remove_unused(entry, self._place.prefix(kind))
        if self._is_main:
            report_damage(self._listing, scan)
        return scan

    def decode(self) -> tuple[dict[str, Samples], np.ndarray]:
        """Return the parts with their images decoded, and the histogram of the training images."""
        listing, size = self._listing, self._config.image_size
        kind = f"{size}px"
        entry = self._place.entry(kind, self._key)
        shapes = {part: (len(files), size, size, NUM_CHANNELS) for part, files in listing.parts.items()}
        cached = read_entry(entry, shapes, discard_damaged=self._is_main)
        if cached is None:
            assert self._is_main, f"no cache {entry}: the main process has to build it first"
            cached = self._build_cache(entry, shapes)
            remove_unused(entry, self._place.prefix(kind))
        self._report_bad(cached.bad)
        good = listing.without(cached.bad)

        def image_set(part: str) -> ImageSet:
            images, files = cached.arrays[part], good.parts[part]
            if len(files) < len(images):
                images = np.delete(images, list(cached.bad[part]), axis=0)
            return ImageSet(images, files.labels, tuple(files.paths))

        return {part: image_set(part) for part in listing.parts}, cached.histogram

    def _report_bad(self, bad: BadImages) -> None:
        if self._is_main:
            report_bad(self._listing, bad, stop=self._config.on_bad_image == "stop")

    def _build_cache(self, entry: Path, shapes: dict[str, tuple[int, ...]]) -> CachedArrays:
        """Decode all files into a new cache entry, and open it."""
        try:
            write_entry(entry, shapes, self._decode_into)
        except OSError as error:
            raise cannot_write(entry, error) from None
        cached = read_entry(entry, shapes, discard_damaged=False)
        if cached is None:
            raise UserError(
                f"data.cache_dir: {entry} is damaged and cannot be replaced; "
                "remove it, or set data.cache_dir to another folder"
            )
        return cached

    def _decode_into(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, BadImages]:
        """Decode all files into the arrays.

        Returns:
            The histogram of the good training images (0 if there are none), and the bad rows.
        """
        listing, bad = self._listing, {}
        for part, files in listing.parts.items():
            file_at = partial(files.file, listing.root)
            bad[part] = decode_files(
                file_at, arrays[part], self._config.num_threads, f"decoding {part} images"
            )
            arrays[part][list(bad[part])] = 0
        if self._config.on_bad_image == "stop":
            report_bad(listing, bad, stop=True)
        train = arrays.get("train", np.empty((0, 1, 1, NUM_CHANNELS), np.uint8))
        if bad.get("train"):
            train = np.delete(train, list(bad["train"]), axis=0)
        return channel_histogram(train), bad

    def stream(self, scan: Scan) -> tuple[dict[str, Samples], np.ndarray | None]:
        """Return the parts as files with their sizes from the scan, and the histogram if one is needed."""
        self._report_bad(scan.bad)
        good, config = self._listing.without(scan.bad), self._config
        view = CentreView(config.eval_image_size or config.image_size, config.eval_crop)

        def file_set(part: str) -> FileSet:
            files, sizes = good.parts[part], scan.sizes[part]
            old_ids = np.setdiff1d(np.arange(len(sizes)), list(scan.bad[part]))
            replaced = {
                int(np.searchsorted(old_ids, old)): scan.entry / name
                for old, name in scan.replaced[part].items()
            }
            return FileSet(
                good.root,
                files,
                sizes[old_ids],
                config.image_size,
                view,
                replaced,
                all_decoded=config.on_bad_image == "skip",
            )

        parts = {part: file_set(part) for part in good.parts}
        needed = "train" in parts and not (config.mean and config.std)
        return {**parts}, self._histogram(parts["train"], scan) if needed else None

    def _histogram(self, train: FileSet, scan: Scan) -> np.ndarray:
        """Return the histogram of evenly spread training images, as in evaluation; keep it in the cache."""
        path = scan.entry / f"histogram-{train.view.size}-{train.view.share:g}.npy"
        samples = spread(len(train))
        if path.exists():
            try:
                return _read_histogram(path, len(samples) * train.view.size**2)
            except (OSError, ValueError) as error:
                _log.warning("the cache %s is damaged (%s)", path, error)
        histogram = self._count_pixels(train, samples)
        if self._is_main:
            content = io.BytesIO()
            np.save(content, histogram)
            try:
                write_whole(path, content.getvalue())
            except OSError as error:
                raise cannot_write(scan.entry, error) from None
        return histogram

    def _count_pixels(self, train: FileSet, samples: np.ndarray) -> np.ndarray:
        """Return the histogram of these training images, (3, 256) int64."""
        histograms = np.empty((len(samples), NUM_CHANNELS, 256), np.int64)

        def count(row: int) -> None:
            histograms[row] = channel_histogram(read_centre(train.file(int(samples[row])), train.view)[None])

        bad = try_all(
            *(range(len(samples)), count, self._config.num_threads, "decoding a sample of train images"),
            within=images_of_any_size,
        )
        if bad:
            listed = train.list_bad({int(samples[row]): reason for row, reason in bad.items()})
            raise UserError(
                f"data.root: {len(bad)} of a sample of {len(samples)} images cannot be decoded, though their "
                "headers and ends are intact; replace or remove them (python -m pipeline check-data finds "
                f"all such files), or set data.on_bad_image=skip:{listed}"
            )
        return histograms.sum(axis=0)


def _read_histogram(path: Path, num_pixels: int) -> np.ndarray:
    with path.open("rb") as file:
        histogram = np.lib.format.read_array(file, allow_pickle=False)
    if histogram.shape != (NUM_CHANNELS, 256) or histogram.min() < 0:
        raise ValueError("it is not a histogram")
    if (histogram.sum(axis=1) != num_pixels).any():
        raise ValueError("it belongs to other images")
    return histogram
