"""Wakes the GPU in a thread, while the main thread imports torch: opens it and loads the libraries that the
first training step would load."""

import ctypes
import glob
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from pipeline.process.system_files import read_text

_CUDNN = "libcudnn.so."  # torch links this one, which loads the others when it needs them
# Those of cuDNN that a convolution needs. Left out: recurrent networks and attention.
_PARTS = ("graph", "ops", "cnn", "heuristic", "engines_runtime_compiled", "engines_precompiled")
_DALI = ("core", "kernels", "", "operators")
_PATIENCE_S, _LOOK_S = 10.0, 0.02


def wake_gpu(number: int, with_dali: bool) -> Callable[[], None]:
    """Open a GPU and load libraries, in a thread that does not keep the process alive.

    What fails is left to torch and DALI, which say why. Nothing but time is lost then.

    Args:
        number: of the GPU, among those that are visible.
        with_dali: load DALI's libraries too.

    Returns:
        A function to be called when torch is imported, and before anything changes the environment, which the
        libraries read as they are loaded. It waits for the thread.
    """
    imported = threading.Event()

    def work() -> None:
        with suppress(Exception):
            # torch needs the system's loader until it has cuDNN
            if _open(number) and (parts := _cudnn(imported)):
                for library in [*(_dali() if with_dali else []), *parts]:
                    _load(library)

    thread = threading.Thread(target=work, name="gpu", daemon=True)
    thread.start()

    def finish() -> None:
        imported.set()
        thread.join(_PATIENCE_S)

    return finish


def _open(number: int) -> bool:
    """Make the context of a GPU, the one that torch uses, as the first call of CUDA would; False without one.

    Raises:
        OSError: there is no driver.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), number):
        return False
    return driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0


def _load(library: str) -> bool:
    """Load a library by the system's function: that of `ctypes.CDLL` keeps Python's lock meanwhile."""
    load = ctypes.CDLL(None).dlopen
    load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    return bool(load(os.fsencode(library), os.RTLD_NOW | os.RTLD_LOCAL))


def _dali() -> list[str]:
    found = find_spec("nvidia.dali")
    if found is None or not found.submodule_search_locations:
        return []
    folder = found.submodule_search_locations[0]
    return [f"{folder}/libdali{'_' if name else ''}{name}.so" for name in _DALI]


def _cudnn(imported: threading.Event) -> list[str]:
    """Return cuDNN's parts beside the one that torch has loaded, as soon as it has; none without it.

    Args:
        imported: set when torch is imported.
    """
    is_last = False
    while True:
        for line in read_text(Path("/proc/self/maps")).splitlines():
            folder, _, name = line[line.find("/") :].rpartition("/")
            if name.startswith(_CUDNN):
                paths = (sorted(glob.glob(f"{glob.escape(folder)}/libcudnn_{part}.so.*")) for part in _PARTS)
                return [path for found in paths for path in found[:1]]
        if is_last:
            return []
        is_last = imported.wait(_LOOK_S)
