"""Applies the drawn operations of TrivialAugment in a DALI graph, on uint8 HWC images.

DALI's own `trivial_augment_wide` draws its operations itself, so that a resumed run would see other images.
Here the operators are the same, and the operations, their strengths and their directions come from outside,
as numbers. The conditions of DALI divide a batch, so that each image goes through one operation only.

The five operations that move pixels are one `warp_affine` with another matrix. Strengths, black pixels around
a moved image and bilinear interpolation are those of torchvision's recipes; DALI's default is grey pixels.
"""

from typing import Any

import numpy as np

from pipeline.data.sampling.trivial_augment import OPERATIONS, strengths_of

INPUTS = ("operation", "matrix", "factor", "kernel", "mask")
_FIRST_WARP, _LAST_WARP = OPERATIONS.index("shear_x"), OPERATIONS.index("rotate")
_BRIGHTNESS, _COLOR, _CONTRAST, _SHARPNESS, _POSTERIZE, _SOLARIZE, _AUTO_CONTRAST, _EQUALIZE = range(
    _LAST_WARP + 1, len(OPERATIONS)
)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # shares of the channels
_BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_SAME = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)


def inputs_of(draws: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Turn draws into the inputs of `apply`, one of each for an image.

    Args:
        draws: (B, 2) int32 of `draw_trivial_augment`.
        size: height and width of the images, in pixels.
    """
    strengths = strengths_of(draws)
    moved = np.where((draws[:, 0] >= _FIRST_WARP) & (draws[:, 0] <= _LAST_WARP), strengths, 0)
    is_factor = (draws[:, 0] >= _BRIGHTNESS) & (draws[:, 0] <= _SHARPNESS)
    factors = np.where(is_factor, 1 + strengths, strengths)
    bits = np.where(draws[:, 0] == _POSTERIZE, strengths, 8).astype(np.int64)
    share = np.where(draws[:, 0] == _SHARPNESS, factors, 1).astype(np.float32)[:, None, None]
    return {
        "operation": draws[:, 0].astype(np.int32),
        "matrix": _matrices(draws[:, 0], moved, size),
        "factor": factors.astype(np.float32),
        "kernel": share * _SAME + (1 - share) * _BLUR,
        "mask": (256 - 2 ** (8 - bits)).astype(np.uint8),
    }


def _matrices(operations: np.ndarray, strengths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (B, 2, 3) float32 maps from output to input, in which pixel i spans [i, i + 1]."""
    height, width = size

    def only(name: str) -> np.ndarray:
        return np.where(operations == OPERATIONS.index(name), strengths, 0.0)

    angle = np.radians(only("rotate"))
    cosine, sine = np.cos(angle), np.sin(angle)
    matrices = np.zeros((len(operations), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = cosine
    matrices[:, 0, 1] = only("shear_x") - sine
    matrices[:, 1, 0] = only("shear_y") + sine
    # a rotation is about the centre
    matrices[:, 0, 2] = (width - cosine * width + sine * height) / 2 - only("translate_x")
    matrices[:, 1, 2] = (height - sine * width - cosine * height) / 2 - only("translate_y")
    return matrices.astype(np.float32)


def apply(images: Any, inputs: dict[str, Any], on_gpu: bool, fn: Any, types: Any) -> Any:
    """Define the operators: one branch for each operation. DALI turns the conditions into parts of the graph.

    Args:
        images: uint8 HWC.
        inputs: external sources with the arrays of `inputs_of`, on the CPU.
        on_gpu: the images are on the GPU.
        fn, types: DALI's modules.
    """
    operation, factor = inputs["operation"], inputs["factor"]
    if operation == 0:
        result = images
    elif operation <= _LAST_WARP:
        result = fn.warp_affine(images, matrix=inputs["matrix"], fill_value=0, inverse_map=True)
    elif operation == _BRIGHTNESS:
        result = fn.brightness(images, brightness=factor)
    elif operation == _COLOR:
        result = fn.saturation(images, saturation=factor)
    elif operation == _CONTRAST:
        result = _contrast(images, factor, fn, types)
    elif operation == _SHARPNESS:
        result = fn.filter(images, _beside(inputs["kernel"], on_gpu))
    elif operation == _POSTERIZE:
        result = images & _beside(inputs["mask"], on_gpu)
    elif operation == _SOLARIZE:
        result = _solarize(images, _beside(factor, on_gpu), types)
    elif operation == _AUTO_CONTRAST:
        result = _auto_contrast(images, fn, types)
    else:  # of the negative: then it is Pillow's and torchvision's definition
        result = _negative(fn.equalize(_negative(images, types)), types)
    return result


def _beside(value: Any, on_gpu: bool) -> Any:
    """Move an input to the device of the images."""
    return value.gpu() if on_gpu else value


def _contrast(images: Any, factor: Any, fn: Any, types: Any) -> Any:
    means = fn.reductions.mean(images, axis_names="HW", keep_dims=True)
    grey = fn.reductions.sum(means * types.Constant(_GREY), axis_names="C", keep_dims=True)
    return fn.cast_like(grey + (images - grey) * factor, images)


def _solarize(images: Any, threshold: Any, types: Any) -> Any:
    kept = images < threshold
    return kept * images + (kept ^ True) * _negative(images, types)


def _negative(images: Any, types: Any) -> Any:
    return types.Constant(255, dtype=types.UINT8) - images


def _auto_contrast(images: Any, fn: Any, types: Any) -> Any:
    low = fn.reductions.min(images, axis_names="HW", keep_dims=True)
    high = fn.reductions.max(images, axis_names="HW", keep_dims=True)
    spread = high - low
    differs = spread > 0  # a channel of one value stays as it is
    divisor = spread * differs + types.Constant(255, dtype=types.UINT8) * (differs ^ True)
    return fn.cast_like((images - low * differs) * (255 / divisor), images)
