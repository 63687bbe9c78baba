"""Make a folder of large JPEGs to time loaders on, as train/CLASS/* and val/CLASS/*.

The pictures are mosaics of small photographs, enlarged; or, with `--from`, the images of class folders in
other sizes (see `resample_folder`).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from benchmarks.suites.resample_folder import resample_folder
from pipeline.config import DigitsData, FolderData
from pipeline.data import ImageSet, Splits, load_splits
from pipeline.data.files.many import try_all
from pipeline.errors import UserError
from pipeline.process.cores import usable_cores

_ABOUT = "Make a folder of large JPEGs, train/CLASS/* and val/CLASS/*, to time loaders on."
_ENLARGED = (
    2  # bicubically: smooth like photographs, which JPEG files of 32x32 tiles at native resolution are not
)
_QUALITY = 90
_IMAGES, _SIZE = 20_000, (500, 375)
_VAL_SHARE = 20  # training images for each image for validation


def mosaic(images: np.ndarray, size: tuple[int, int], seed: int, number: int) -> Image.Image:
    """Return a picture of tiles, the same for the same arguments.

    Args:
        images: (N, H, W, 3) uint8, to draw tiles from.
        size: width and height of the result in pixels.
        seed, number: of the draw.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
    side = images.shape[1]
    across, down = (-(-length // (side * _ENLARGED)) for length in size)
    tiles = images[generator.integers(len(images), size=down * across)]
    small = rearrange(tiles, "(down across) h w c -> (down h) (across w) c", down=down)
    large = Image.fromarray(small).resize(
        (small.shape[1] * _ENLARGED, small.shape[0] * _ENLARGED), Image.Resampling.BICUBIC
    )
    return large.crop((0, 0, *size))


@dataclass(frozen=True)
class FolderMaker:
    """Writes pictures whose tiles are all of one class.

    Attributes:
        folder: to write to.
        source: images of the tiles.
        classes: names of the classes.
        size: width and height of a picture in pixels.
        num_threads: that write at the same time.
    """

    folder: Path
    source: ImageSet
    classes: Sequence[str]
    size: tuple[int, int]
    num_threads: int

    def make(self, num_images: int) -> int:
        """Write `num_images` training pictures and a twentieth as many for validation.

        Returns:
            Bytes of the training pictures.

        Raises:
            UserError: a file cannot be written.
        """
        self._write("train", num_images, seed=0)
        self._write("val", max(num_images // _VAL_SHARE, len(self.classes)), seed=1)
        return sum(path.stat().st_size for path in (self.folder / "train").glob("*/*.jpg"))

    def _write(self, part: str, count: int, seed: int) -> None:
        by_class = [self.source.images[self.source.labels == label] for label in range(len(self.classes))]
        for name in self.classes:
            (self.folder / part / name).mkdir(parents=True, exist_ok=True)

        def write(number: int) -> None:
            label = number % len(self.classes)
            picture = mosaic(by_class[label], self.size, seed, number)
            picture.save(self.folder / part / self.classes[label] / f"{number:07d}.jpg", quality=_QUALITY)

        failed = try_all(range(count), write, self.num_threads, f"writing {part} images")
        if failed:
            reason = next(iter(failed.values()))
            raise UserError(f"{self.folder / part}: cannot write {len(failed)} of {count} images ({reason})")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500x375")
    return int(width), int(height)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks make-folder", description=_ABOUT)
    parser.add_argument("folder", type=Path, help="folder to write; it is created if it does not exist")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"training mosaics (default: {_IMAGES}), and a twentieth for validation",
    )
    parser.add_argument(
        "--size", type=_size, metavar="WxH", help="of each mosaic, in pixels (default: 500x375)"
    )
    parser.add_argument(
        "--source",
        metavar="DIR",
        help="folder of small images in classes for the mosaics, such as CIFAR-10's (default: handwritten "
        "digits)",
    )
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="DIR",
        help="class folders; make every image of them anew in another size, instead of mosaics",
    )
    parser.add_argument(
        "--sizes",
        choices=("imagenet",),
        help="with --from: draw sizes as ImageNet's, most of them 500x375 (the default)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="with --from: seed of the random sizes (default: 0)"
    )
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), metavar="N", help="default: one a core"
    )
    return parser


def _load_source(folder: str | None, num_threads: int) -> Splits:
    if folder is None:
        return load_splits(DigitsData(), seed=0)
    return load_splits(FolderData(root=folder, num_threads=num_threads), seed=0)


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.threads < 1:
        parser.error("--threads: at least 1")
    if options.origin is None:
        for name in ("sizes", "seed"):
            if getattr(options, name) is not None:
                parser.error(f"--{name}: has no effect on mosaics; add --from, or leave it out")
        _make_mosaics(parser, options)
        return 0
    for name in ("images", "size", "source"):
        if getattr(options, name) is not None:
            parser.error(f"--{name}: is for mosaics; leave it out with --from")
    seed = options.seed or 0
    if not 0 <= seed < 2**63:
        parser.error("--seed: at least 0, and below 2**63")
    about = resample_folder(options.origin, options.folder, seed, options.threads)
    counts = " and ".join(f"{count} {part}" for part, count in about.images.items())
    size_kb = (about.mean_bytes or 0) / 1000
    print(f'{options.folder}: {counts} images of {size_kb:.0f} kB on average; in records "{about.name}"')
    return 0


def _make_mosaics(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    num_images = _IMAGES if options.images is None else options.images
    if num_images < 2:
        parser.error("--images: at least 2")
    splits = _load_source(options.source, options.threads)
    if not isinstance(splits.train, ImageSet):
        raise UserError(
            f"--source: the images of {options.source} are large already; time loaders on them as they are, "
            "or make them anew in other sizes with --from"
        )
    size = options.size or _SIZE
    maker = FolderMaker(options.folder, splits.train, splits.class_names, size, options.threads)
    size_kb = maker.make(num_images) / num_images / 1000
    print(f"{options.folder}: {num_images} training images of {size_kb:.0f} kB on average")
