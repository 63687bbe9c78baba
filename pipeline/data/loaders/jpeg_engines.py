"""Counts the JPEG engines of the GPU: hardware that decodes JPEG files, which A100, H100 and others have."""

import ctypes
import importlib.util
from ctypes.util import find_library
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_HARDWARE = 3  # NVJPEG_BACKEND_HARDWARE


def count_jpeg_engines(device: "torch.device") -> int:
    """Ask nvJPEG, the library that DALI decodes with, for the engines of a GPU.

    Returns:
        0 if the GPU has none, or if there is no GPU or no nvJPEG.
    """
    import torch

    library = _load()
    if library is None or not torch.cuda.is_available():
        return 0
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # makes the context of this device current, which nvJPEG takes
        return _ask(library)


def _ask(library: ctypes.CDLL) -> int:
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_uint(0)
    if library.nvjpegCreateEx(_HARDWARE, None, None, ctypes.c_uint(0), ctypes.byref(handle)) != 0:
        return 0
    try:
        failed = library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
    finally:
        library.nvjpegDestroy(handle)
    return 0 if failed else engines.value


def _load() -> ctypes.CDLL | None:
    """Load nvJPEG: that of its Python package, which DALI brings, or else that of the system."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    packaged = sorted(
        str(path) for folder in folders or () for path in Path(folder).glob("*/lib/libnvjpeg.so.*")
    )
    for name in (*packaged, find_library("nvjpeg")):
        try:
            library = ctypes.CDLL(name) if name is not None else None
        except OSError:
            continue
        if library is not None and hasattr(library, "nvjpegGetHardwareDecoderInfo"):
            return library
    return None
