"""Make a folder of large JPEGs to time loaders on: mosaics of small photographs, enlarged, as train/CLASS/* and val/CLASS/*."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data import ImageSet, load_splits
from pipeline.data.files.decode import try_all
from pipeline.errors import UserError

_ENLARGED = (
    2  # bicubically: the smoothness of photographs, which JPEG files at native resolution of 32x32 tiles lack
)
_QUALITY = 90
_VAL_SHARE = 20  # one image for validation to so many for training


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500x375")
    return int(width), int(height)


def mosaic(images: np.ndarray, size: tuple[int, int], seed: int, number: int) -> Image.Image:
    """A picture of tiles, the same for the same arguments.

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


def make_folder(
    folder: Path,
    source: ImageSet,
    classes: Sequence[str],
    num_images: int,
    size: tuple[int, int],
    num_threads: int,
) -> int:
    """Write `num_images` training pictures and a twentieth as many for validation; all tiles of a picture are of its class.

    Returns:
        Bytes of the training pictures.

    Raises:
        UserError: a file cannot be written.
    """
    by_class = [source.images[source.labels == label] for label in range(len(classes))]
    for part, count in (("train", num_images), ("val", max(num_images // _VAL_SHARE, len(classes)))):
        for name in classes:
            (folder / part / name).mkdir(parents=True, exist_ok=True)

        def write(number: int, part: str = part) -> None:
            label = number % len(classes)
            picture = mosaic(by_class[label], size, seed=int(part == "val"), number=number)
            picture.save(folder / part / classes[label] / f"{number:07d}.jpg", quality=_QUALITY)

        failed = try_all(range(count), write, num_threads, f"writing {part} images")
        if failed:
            raise UserError(
                f"{folder / part}: cannot write {len(failed)} of {count} images ({next(iter(failed.values()))})"
            )
    return sum(path.stat().st_size for path in (folder / "train").glob("*/*.jpg"))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks make-folder", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to; made if it is not there")
    parser.add_argument(
        "--images",
        type=int,
        default=20_000,
        metavar="N",
        help="training images (default: 20000), and a twentieth for validation",
    )
    parser.add_argument(
        "--size", type=_size, default=(500, 375), metavar="WxH", help="of each, in pixels (default: 500x375)"
    )
    parser.add_argument(
        "--source",
        metavar="DIR",
        help="folder of small images in classes, such as CIFAR-10's (default: handwritten digits)",
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one a core"
    )
    options = parser.parse_args(argv)
    if options.images < 2:
        parser.error("--images: at least 2")
    given = (
        {"dataset": "folder", "root": options.source, "num_threads": options.threads}
        if options.source
        else {"dataset": "digits"}
    )
    splits = load_splits(DataConfig.model_validate(given), seed=0)
    if not isinstance(splits.train, ImageSet):
        raise UserError(
            f"--source: the images of {options.source} are large already; time loaders on them as they are"
        )
    written = make_folder(
        options.folder, splits.train, splits.class_names, options.images, options.size, options.threads
    )
    print(
        f"{options.folder}: {options.images} training images of {written / options.images / 1000:.0f} kB on average"
    )
    return 0
