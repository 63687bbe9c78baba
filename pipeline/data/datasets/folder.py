"""Image folders: small images are decoded once and cached, larger ones are streamed from their files."""

import hashlib
import logging
import os
import secrets
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.file_set import FileSet, read_centre
from pipeline.data.datasets.splits import ImageSet, RawSplits
from pipeline.data.datasets.statistics import channel_histogram
from pipeline.data.files.cache import BadImages, CachedArrays, read_entry, remove_older, write_entry
from pipeline.data.files.decode import decode_files, images_of_any_size, try_all
from pipeline.data.files.listing import Listing, list_files, read_class_names
from pipeline.data.files.scan import Scan, read_scan, report_bad, scan_files
from pipeline.data.sampling.resized_crops import CentreView
from pipeline.errors import UserError

_log = logging.getLogger(__name__)

_FORMAT_VERSION = (
    3  # raise it when the same files lead to other pixels or sizes, or the cache's layout changes
)
_STATISTICS_IMAGES = 1024  # the mean of so many images is within about 0.005 of that of all


def load_folder(config: DataConfig, *, is_main: bool = True) -> RawSplits:
    """Read class folders, or the files that lists name: see `list_files`.

    Where no side of an image is longer than `data.cache_below`, all are decoded to one size (how, `decode_image` says) and kept in
    `data.cache_dir`, by default `ROOT/.quickres`. Larger images stay in their files, and their sizes are kept there. Everything is kept
    under a hash of all paths, sizes and modification times, so that a changed file is noticed; what was kept of the files as they were
    before is removed then.

    Args:
        config: the section `data`.
        is_main: whether this process may decode and write.

    Raises:
        UserError: folders that are not as described, images that cannot be read, a cache that cannot be written.
    """
    root = Path(config.root).expanduser()  # the shell expands no ~ in `data.root=~/images`
    listing = list_files(root, config)
    names = (
        listing.classes
        if config.class_names is None
        else read_class_names(Path(config.class_names).expanduser(), listing.classes)
    )
    reader = _Reader(listing, config, names, is_main)
    scan = reader.scan()
    return reader.streamed(scan) if scan.longest_side > config.cache_below else reader.decoded()


class _Reader:
    """Reads one listing, from the cache where it can.

    Args:
        listing: the files.
        config, is_main: as for `load_folder`.
        names: of the classes.
    """

    def __init__(self, listing: Listing, config: DataConfig, names: tuple[str, ...], is_main: bool):
        self._listing, self._config, self._names, self._is_main = listing, config, names, is_main
        self._key = hashlib.sha256(
            f"{_FORMAT_VERSION} {listing.key()} {config.cache_below}".encode()
        ).hexdigest()[:16]
        cache_dir, root = config.cache_dir, listing.root
        self._folder = root / ".quickres" if cache_dir is None else Path(cache_dir).expanduser()
        # the caches of several data sets can share a folder
        self._owner = (
            ""
            if cache_dir is None
            else f"{root.resolve().name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]}-"
        )

    def _entry(self, kind: str) -> Path:
        return self._folder / f"{self._owner}{kind}-{self._key}"

    def scan(self) -> Scan:
        """Sizes and bad files."""
        entry, config = self._entry("scan"), self._config
        found = read_scan(entry, self._listing, discard_damaged=self._is_main)
        if found is None:
            assert self._is_main, f"no cache {entry}: the main process has to build it first"
            try:
                found = scan_files(self._listing, entry, config.num_threads, config.cache_below)
            except OSError as error:
                raise _cannot_write(entry, error) from None
            remove_older(entry, f"{self._owner}scan-")
        return found

    def decoded(self) -> RawSplits:
        """All images, decoded."""
        listing, size = self._listing, self._config.image_size
        kind = f"{size}px"
        entry = self._entry(kind)
        shapes = {part: (len(files), size, size, NUM_CHANNELS) for part, files in listing.parts.items()}
        cached = read_entry(entry, shapes, discard_damaged=self._is_main)
        if cached is None:
            assert self._is_main, f"no cache {entry}: the main process has to build it first"
            cached = self._decode(entry, shapes)
            remove_older(entry, f"{self._owner}{kind}-")
        self._report(cached.bad)
        kept = listing.without(cached.bad)

        def image_set(part: str) -> ImageSet:
            images, files = cached.arrays[part], kept.parts[part]
            if len(files) < len(images):
                images = np.delete(images, list(cached.bad[part]), axis=0)
            return ImageSet(images, files.labels, tuple(files.paths))

        return RawSplits(image_set("train"), image_set("test"), self._names, cached.histogram)

    def _report(self, bad: BadImages) -> None:
        if self._is_main:
            report_bad(self._listing, bad, stop=self._config.on_bad_image == "stop")

    def _decode(self, entry: Path, shapes: dict[str, tuple[int, ...]]) -> CachedArrays:
        """Decode all files into a new cache entry and open it."""
        listing = self._listing

        def fill(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, BadImages]:
            bad = {}
            for part, files in listing.parts.items():
                paths = [listing.root / path for path in files.paths]
                bad[part] = decode_files(
                    paths, arrays[part], self._config.num_threads, f"decoding {part} images"
                )
                arrays[part][list(bad[part])] = 0
            if self._config.on_bad_image == "stop":
                report_bad(listing, bad, stop=True)
            return channel_histogram(
                np.delete(arrays["train"], list(bad["train"]), axis=0) if bad["train"] else arrays["train"]
            ), bad

        try:
            write_entry(entry, shapes, fill)
        except OSError as error:
            raise _cannot_write(entry, error) from None
        cached = read_entry(entry, shapes, discard_damaged=False)
        if cached is None:
            raise UserError(
                f"data.cache_dir: {entry} is damaged and cannot be replaced; remove it, or set data.cache_dir to another folder"
            )
        return cached

    def streamed(self, scan: Scan) -> RawSplits:
        """The files, with what the scan has found."""
        self._report(scan.bad)
        kept, config = self._listing.without(scan.bad), self._config
        view = CentreView(config.eval_image_size or config.image_size, config.eval_crop)

        def file_set(part: str) -> FileSet:
            files, sizes = kept.parts[part], scan.sizes[part]
            left = np.setdiff1d(np.arange(len(sizes)), list(scan.bad[part]))
            new_ids = {old: int(np.searchsorted(left, old)) for old in scan.replaced[part]}
            replaced = {new: scan.entry / scan.replaced[part][old] for old, new in new_ids.items()}
            return FileSet(
                kept.root,
                files.paths,
                files.labels,
                sizes[left],
                config.image_size,
                view,
                replaced,
                scan.in_use,
            )

        train, test = file_set("train"), file_set("test")
        return RawSplits(
            train, test, self._names, None if config.mean and config.std else self._histogram(train, scan)
        )

    def _histogram(self, train: FileSet, scan: Scan) -> np.ndarray:
        """Histogram of evenly spread training images, as evaluation shows them. Kept beside the scan."""
        path = scan.entry / f"histogram-{train.view.size}-{train.view.share:g}.npy"
        chosen = np.unique(np.linspace(0, len(train) - 1, _STATISTICS_IMAGES).astype(np.int64))
        if path.exists():
            try:
                with path.open("rb") as file:
                    kept = np.lib.format.read_array(file, allow_pickle=False)
                if (
                    kept.shape != (NUM_CHANNELS, 256)
                    or kept.min() < 0
                    or (kept.sum(axis=1) != len(chosen) * train.view.size**2).any()
                ):
                    raise ValueError("it is not of these images")
                return kept
            except (OSError, ValueError) as error:
                _log.warning("the cache %s is damaged (%s)", path, error)
        histogram = self._count(train, chosen)
        if self._is_main:
            temporary = path.with_name(f"{secrets.token_hex(8)}.npy")
            try:
                np.save(temporary, histogram)
                temporary.replace(path)
            except OSError as error:
                raise _cannot_write(scan.entry, error) from None
        return histogram

    def _count(self, train: FileSet, chosen: np.ndarray) -> np.ndarray:
        """(3, 256) int64, histogram of these training images."""
        histograms = np.empty((len(chosen), NUM_CHANNELS, 256), np.int64)

        def count(row: int) -> None:
            histograms[row] = channel_histogram(read_centre(train.file(int(chosen[row])), train.view)[None])

        with images_of_any_size():
            bad = try_all(
                range(len(chosen)), count, self._config.num_threads, "decoding a sample of train images"
            )
        if bad:
            listed = train.listed({int(chosen[row]): reason for row, reason in bad.items()})
            raise UserError(
                f"data.root: {len(bad)} of a sample of {len(chosen)} images cannot be decoded, though their headers and ends are whole; "
                f"replace or remove them (python -m pipeline check-data finds all such files):{listed}"
            )
        return histograms.sum(axis=0)


def _cannot_write(entry: Path, error: OSError) -> UserError:
    return UserError(
        f"data.cache_dir: cannot write {entry} ({error.strerror or error}); set data.cache_dir to a folder with room, that you may write to"
    )
