"""Makes a folder of images of natural sizes out of class folders of small ones: `make-folder --from`.

The sizes are drawn to resemble those of ImageNet, of which most photographs are 500 pixels long. They are
drawn from a seed, part and number of an image, so that the same call makes the same files.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.publish.about_folder import ABOUT, LONGEST_NAME, AboutFolder
from pipeline.config import FolderData
from pipeline.data.files.decode import open_rgb
from pipeline.data.files.list_files import list_files
from pipeline.data.files.listing import Listing
from pipeline.data.files.many import try_all
from pipeline.errors import UserError

# (width, height) of photographs that are 500 pixels long, with their shares
_COMMON = {(500, 375): 0.64, (500, 333): 0.2, (500, 400): 0.06, (500, 500): 0.05, (500, 281): 0.05}
_SHARE_SMALLER, _SHARE_LARGER = 0.14, 0.14
_SMALLER, _LARGER = (200, 480), (640, 1600)  # pixels of the long side; its logarithm is uniform
_SHARE_PORTRAIT = 0.25
_QUALITIES = (90, 95)
# Standard deviation of the grain, in grey levels. Enlarged images are smoother than photographs of their
# size, so that their files are smaller and decoded sooner: at 500x375 41 kB without grain, and 82 kB with it.
# Over all sizes the files then have 116 kB, and those of ImageNet about 110 kB.
_GRAIN = 8.0
_PARTS = {"train": "train", "test": "val"}  # of a listing, and the folder to write
_RESAMPLED = " resampled to ImageNet's sizes"


@dataclass(frozen=True)
class Look:
    """The draws of one image.

    Attributes:
        size: width and height in pixels.
        quality: of its JPEG file.
    """

    size: tuple[int, int]
    quality: int

    @classmethod
    def draw(cls, generator: np.random.Generator) -> "Look":
        """Draw a size as ImageNet's, and a quality from 90 to 95."""
        sizes, shares = list(_COMMON), np.cumsum(list(_COMMON.values()))
        kind, common, length, turn = generator.random(4).tolist()
        width, height = sizes[int(np.searchsorted(shares, common))]
        if kind < _SHARE_SMALLER + _SHARE_LARGER:
            least, most = _SMALLER if kind < _SHARE_SMALLER else _LARGER
            long_side = round(least * (most / least) ** length)
            width, height = long_side, round(long_side * height / width)
        quality = int(generator.integers(_QUALITIES[0], _QUALITIES[1] + 1))
        return cls((height, width) if turn < _SHARE_PORTRAIT else (width, height), quality)


def resample(image: Image.Image, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Cut the largest centre of this shape out of an image, resize it bicubically, and add grain.

    Args:
        image: RGB.
        size: width and height of the result in pixels.
        generator: of the grain, which is equal in the three channels.
    """
    scale = min(image.width / size[0], image.height / size[1])
    # without rounding of the product, which would reach beyond the image
    width, height = min(size[0] * scale, image.width), min(size[1] * scale, image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    resized = image.resize(size, Image.Resampling.BICUBIC, box=box)
    grain = generator.standard_normal((size[1], size[0], 1), np.float32) * np.float32(_GRAIN)
    return Image.fromarray(np.clip(np.rint(np.asarray(resized) + grain), 0, 255).astype(np.uint8))


def resample_folder(source: str, folder: Path, seed: int, num_threads: int) -> AboutFolder:
    """Write `train/CLASS/*.jpg` and `val/CLASS/*.jpg`: every image of class folders, in another size.

    Args:
        source: class folders, as `data.root`.
        folder: to write to; it is created if it does not exist.
        seed: of sizes, qualities and grain.
        num_threads: that work at the same time.

    Returns:
        What the file `about.json` in the folder says.

    Raises:
        UserError: the class folders cannot be read, an image cannot be decoded, or a file cannot be written;
            or the folder to write is the one to read, or holds images already.
    """
    listing = list_files(FolderData(root=source))
    if folder.resolve() == listing.root.resolve():
        raise UserError(f"--from: {source} is the folder to write, too; name another one")
    _check_empty(folder)
    num_bytes, num_images, sizes = 0, {}, []
    for number, (part, name) in enumerate(_PARTS.items()):
        made = _write_part(listing, part, folder / name, (seed, number), num_threads)
        num_bytes += sum(size for _, size in made)
        num_images[name], sizes = len(made), sizes + [look.size for look, _ in made]
    width, height = np.median(np.array(sizes), axis=0).tolist()
    origin = AboutFolder.of(listing.root)
    name = (origin.name if origin else listing.root.name)[: LONGEST_NAME - len(_RESAMPLED)]
    command = ["python", "-m", "benchmarks", "make-folder", "--from", source, "--seed", str(seed)]
    about = AboutFolder(
        name=name + _RESAMPLED,
        made_by=shlex.join(command),
        images=num_images,
        mean_bytes=round(num_bytes / len(sizes)),
        median_size=(round(width), round(height)),
        note=f"resized from {listing.root.name}, with grain: no photograph has more detail than it had "
        f"there; JPEG quality {_QUALITIES[0]} to {_QUALITIES[1]}",
    )
    about.write(folder / ABOUT)
    return about


def _check_empty(folder: Path) -> None:
    """Refuse a folder with other images: they would be mixed with the new ones, or overwritten."""
    for name in _PARTS.values():
        path = folder / name
        try:
            if path.is_dir() and any(path.iterdir()):
                raise UserError(f"{path}: is not empty; choose another folder, or remove {path}")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); choose another folder") from None


def _write_part(
    listing: Listing, part: str, folder: Path, key: tuple[int, int], num_threads: int
) -> list[tuple[Look, int]]:
    """Write the images of a part. Return the draws and the bytes of each."""
    files, made = listing.parts[part], {}
    try:
        for name in listing.classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None

    def write(index: int) -> None:
        seed, number = key
        generator = np.random.Generator(
            np.random.Philox(key=np.array([seed, number << 32 | index], np.uint64))
        )
        look = Look.draw(generator)
        image = resample(open_rgb(files.file(listing.root, index)), look.size, generator)
        path = folder / listing.classes[files.labels[index]] / f"{index:07d}.jpg"
        image.save(path, quality=look.quality)
        made[index] = look, path.stat().st_size

    failed = try_all(range(len(files)), write, num_threads, f"resampling {folder.name} images", chunk_size=16)
    if failed:
        index, reason = next(iter(failed.items()))
        raise UserError(
            f"{folder}: cannot make {len(failed)} of {len(files)} images (the first, of "
            f"{files.file(listing.root, index)}: {reason})"
        )
    return [made[index] for index in range(len(files))]
