"""Decodes image files with Pillow: one to an RGB image, or many to arrays of one size."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from PIL import Image

from pipeline.data.files.exif import exif_orientation
from pipeline.data.files.file_part import ImageFile, open_image
from pipeline.data.files.image_formats import PILLOW_FORMATS
from pipeline.data.files.many import Portable, try_all

_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_rgb(file: ImageFile) -> Image.Image:
    """Decode one image of a format in `image_formats` to RGB, the first frame of it.

    The image is rotated to its EXIF orientation. 16-bit samples lose their low byte. Transparent pixels are
    blended with white.

    Raises:
        Exception: any error of Pillow for a damaged file, in most cases OSError. For an image that Pillow
            takes for a decompression bomb, a warning or, above twice that size, an error.
    """
    with Image.open(open_image(file), formats=PILLOW_FORMATS) as image:
        image.load()
        turn = _TURNS.get(orientation_of(image))
        return _to_rgb(image if turn is None else image.transpose(turn))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image.

    Pillow's `getexif` is not used: it also reads XMP and other text, which DALI and the scan do not read.
    """
    return exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))


def decode_image(file: ImageFile, image_size: int) -> np.ndarray:
    """Decode one image with `open_rgb` and bring it to one size.

    An image of another size is resized, bilinearly with antialiasing, until its shorter side fits, and its
    centre is cropped.

    Returns:
        (image_size, image_size, 3) uint8, RGB.
    """
    rgb = open_rgb(file)
    width, height = rgb.size
    if (width, height) != (image_size, image_size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        # the filter also reads the pixels around the box: the result is that of resizing first and cropping
        # then
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floats of an unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        high_bytes = np.clip(np.asarray(image).astype(np.int32) >> 8, 0, 255)
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(rgba)
        return white.convert("RGB")
    return image.convert("RGB")


def decode_files(
    file_at: Callable[[int], ImageFile], out: np.ndarray, num_threads: int, description: str
) -> dict[int, str]:
    """Decode files into the rows of an array, with a progress bar on a terminal.

    Args:
        file_at: returns the file of a row.
        out: (N, image_size, image_size, 3) uint8, filled in place.
        num_threads: threads or processes to decode in.
        description: text of the progress bar.

    Returns:
        The reason for each file that could not be decoded, by its index. The rows of these files are
        undefined.
    """
    decode = partial(decode_image, image_size=out.shape[1])
    portable = Portable(keep=out.__setitem__, task_of=file_at)
    options = num_threads, description
    return try_all(range(len(out)), decode, *options, portable=portable, within=_images_below_a_bomb)


@contextmanager
def _images_below_a_bomb() -> Iterator[None]:
    with images_of_any_size():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def images_of_any_size() -> Iterator[None]:
    """Silence Pillow's warnings of large images and of damaged TIFF files, in all threads.

    The scan has a limit of its own, and Pillow still refuses images above twice the size of its warning. A
    damaged TIFF file raises an error too.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
