"""Decodes image files with Pillow: one to an RGB image, or many to arrays of one size, in threads."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from statistics import median

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.data.files.exif import exif_orientation
from pipeline.data.files.file_part import ImageFile, open_image
from pipeline.data.files.image_formats import NO_IMAGE, PILLOW_FORMATS
from pipeline.errors import Stopped

_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CHUNK = (
    64  # images per task: large enough to hide the overhead of a task, small enough to balance the threads
)
# items that are timed, and the seconds below which one is quick
_TIMED, _QUICK_S = 8, 5e-4


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
    files: Sequence[ImageFile], out: np.ndarray, num_threads: int, description: str
) -> dict[int, str]:
    """Decode files into the rows of an array, in threads, with a progress bar on a terminal.

    Args:
        files: N files.
        out: (N, image_size, image_size, 3) uint8, filled in place.
        num_threads: threads to decode in.
        description: text of the progress bar.

    Returns:
        The reason for each file that could not be decoded, by its index. The rows of these files are
        undefined.
    """

    def decode(row: int) -> None:
        out[row] = decode_image(files[row], out.shape[1])

    with images_of_any_size():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return try_all(range(len(files)), decode, num_threads, description)


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


def try_all(
    items: Sequence[int],
    work: Callable[[int], object],
    num_threads: int,
    description: str,
    chunk_size: int = _CHUNK,
) -> dict[int, str]:
    """Do some work for every item, in threads, with a progress bar on a terminal.

    Threads are used, not processes: on 2 busy cores 60,000 files of 32x32 took 6.6 to 9.8 s in four threads,
    and 7.5 to 10.4 s in two or four processes; and Pillow decodes larger images without Python's lock. Small
    images that are at hand spend their time in that lock, for which more than two threads only fight: on 2
    idle cores the same files took 5.5 s in two threads, 7.6 s in four and 9.6 s in eight. So the first few
    items are timed, unless each takes long.

    Args:
        items: numbers of the items.
        work: done for each number.
        num_threads: to work in, at most.
        description: text of the progress bar.
        chunk_size: items that a thread takes at once; 1 if the work for one takes long.

    Returns:
        The reason for each item whose work raised an exception, in ascending order of the items.

    Raises:
        Stopped: Ctrl-C; its `partial` is what would be returned, of the items so far.
    """

    failed: dict[int, str] = {}

    def try_chunk(chunk: Sequence[int]) -> int:
        for item in chunk:
            try:
                work(item)
            except Exception as error:
                failed[item] = reason_of(error)
        return len(chunk)

    with _progress_bar() as progress:
        task = progress.add_task(description, total=len(items))
        try:
            timed = items[: _TIMED if chunk_size > 1 else 0]
            seconds = [_seconds(lambda item=item: try_chunk([item])) for item in timed]
            progress.advance(task, len(timed))
            is_quick = bool(seconds) and median(seconds) < _QUICK_S  # the first one may import a decoder
            with ThreadPoolExecutor(min(num_threads, 2) if is_quick else num_threads) as pool:
                try:
                    starts = range(len(timed), len(items), chunk_size)
                    chunks = [pool.submit(try_chunk, items[start : start + chunk_size]) for start in starts]
                    for done in as_completed(chunks):
                        progress.advance(task, done.result())
                except BaseException:
                    pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
                    raise
        except KeyboardInterrupt:
            raise Stopped(failed) from None
    return dict(sorted(failed.items()))


def _seconds(work: Callable[[], object]) -> float:
    """Do some work, and return the seconds that it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def reason_of(error: Exception) -> str:
    """Return in a few words why a file could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return NO_IMAGE
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _progress_bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
