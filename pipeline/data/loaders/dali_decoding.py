"""Options of DALI's decoders, and the division of a batch between those of CPU and GPU."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.loaders.decoder import DecoderName


@dataclass(frozen=True)
class Decoding:
    """Options of reading and decoding the files.

    Attributes:
        num_threads: DALI's CPU threads.
        prefetch: batches prepared in advance.
        decoder: `gpu`: the GPU itself decodes, which slows the training step down; `cpu`: DALI's CPU threads
            decode, and the crops are copied to the GPU; `both`: each decodes a part of every batch. Without a
            GPU, the CPU decodes.
        hw_load: as `data.hw_decoder_load`.
        gpu_share: as `data.gpu_share`.
    """

    num_threads: int = 4
    prefetch: int = 3
    decoder: DecoderName = "gpu"
    hw_load: float = 1.0
    gpu_share: float | None = None


def decoder_options(decoder: DecoderName, hw_load: float, sizes: np.ndarray) -> dict[str, Any]:
    """Return the arguments of `fn.decoders` for a decoder, `cpu` or `gpu`.

    Args:
        decoder: the one that decodes.
        hw_load: as `data.hw_decoder_load`.
        sizes: (N, 2) height and width of the images of the data set, in pixels.
    """
    if decoder == "cpu":
        return {"device": "cpu"}
    # Measured with the loader alone on one H200 with 16 cores, at 224 pixels and batch 512: 26,000 images/sec
    # with all images on the decoder unit, 24,000 with nine tenths of them, 9,868 on the CPU. Twice the
    # prefetch added 3,000 to the 24,000, and needs memory for as many more batches.
    #
    # The threads are not tied to cores (`affine`): all processes of a host would take the same cores.
    return {"device": "mixed", "hw_decoder_load": hw_load, "affine": False, **_preallocation(sizes)}


def is_chosen(indices: np.ndarray, share: float) -> np.ndarray:
    """Return (B,) bool, True for a share of the samples: for each the same on any number of processes.

    Multiples of the golden ratio spread evenly, so that every batch has nearly this share.
    """
    return np.modf(indices * ((5**0.5 - 1) / 2))[0] < share


def _preallocation(sizes: np.ndarray) -> dict[str, int]:
    """Return the image size for which the decoder unit reserves memory at once.

    It is that of all images but the largest thousandth, so that one huge image does not take memory for every
    image.
    """
    height, width = np.quantile(sizes, 0.999, axis=0, method="higher").tolist()
    return {"preallocate_height_hint": int(height), "preallocate_width_hint": int(width)}
