"""Pack class folders into tar shards of the WebDataset layout, to time loaders on both."""

import argparse
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.publish.about_folder import ABOUT, AboutFolder
from pipeline.config import FolderData
from pipeline.data.files.list_files import list_files
from pipeline.data.files.listing import Listing
from pipeline.data.files.many import try_all
from pipeline.errors import UserError
from pipeline.process.cores import usable_cores

_DESCRIPTION = "Pack class folders into tar files, train-*.tar and val-*.tar, to time loaders on both."
_NAMES = {"train": "train", "test": "val"}
IMAGES_PER_SHARD = 1000


def pack(data: FolderData, folder: Path, images_per_shard: int, num_threads: int) -> int:
    """Write the images of class folders into tar files: `N.jpg` and `N.cls`, the number of the class.

    What `about.json` says of the images is true of the shards too, and is written beside them.

    Neighbours of the listing share a shard, so that the images of a class lie together, as in the folders.

    Args:
        data: the class folders.
        folder: of the shards; it is created if it does not exist.
        images_per_shard: of all shards but the last.
        num_threads: shards that are written at the same time.

    Returns:
        The number of shards.

    Raises:
        UserError: the folders cannot be read, or a shard cannot be written.
    """
    listing = list_files(data)
    tasks = [
        (part, number, np.arange(start, min(start + images_per_shard, len(files))))
        for part, files in listing.parts.items()
        for number, start in enumerate(range(0, len(files), images_per_shard))
    ]

    def write(task: int) -> None:
        part, number, indices = tasks[task]
        _write_shard(listing, part, indices, folder / f"{_NAMES[part]}-{number:06d}.tar")

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None
    failed = try_all(range(len(tasks)), write, num_threads, "packing shards", chunk_size=1)
    if failed:
        raise UserError(f"{folder}: cannot write {len(failed)} shards ({next(iter(failed.values()))})")
    about = AboutFolder.of(listing.root)
    if about is not None:
        about.write(folder / ABOUT)
    return len(tasks)


def _write_shard(listing: Listing, part: str, indices: np.ndarray, path: Path) -> None:
    files, partial = listing.parts[part], path.with_suffix(".part")
    with tarfile.open(partial, "w") as tar:
        for index in indices.tolist():
            image = listing.root / files.paths[index]
            members = {image.suffix: image.read_bytes(), ".cls": str(files.labels[index]).encode()}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{index:08d}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks make-shards", description=_DESCRIPTION)
    parser.add_argument("source", help="class folders, as data.root")
    parser.add_argument("folder", type=Path, help="folder of the shards; it is created if it does not exist")
    parser.add_argument(
        "--images-per-shard",
        type=int,
        default=IMAGES_PER_SHARD,
        metavar="N",
        help=f"default: {IMAGES_PER_SHARD}",
    )
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), metavar="N", help="default: one a core"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.images_per_shard < 1:
        parser.error("--images-per-shard: at least 1")
    count = pack(FolderData(root=options.source), options.folder, options.images_per_shard, options.threads)
    print(f"{options.folder}: {count} shards")
    return 0
