"""Reads a file of weights without running code that it may hold."""

import argparse
import datetime
import re
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.config import path_of
from pipeline.errors import UserError, first_line
from pipeline.pretrained.registry import find_shipped, list_names

REMEDY = (
    "give weights as .safetensors, or a state dict alone, as torch.save(model.state_dict(), FILE) writes it"
)
_CHUNK = 2**22  # bytes


def find_weights_file(value: str) -> Path:
    """Return the file that the key `model.weights` names. A file that exists comes before shipped weights.

    Raises:
        UserError: the file of shipped weights is missing or damaged.
    """
    shipped = find_shipped(value)
    return path_of("model.weights", value) if shipped is None else shipped.verified_path()


def read_weights_file(path: Path) -> Any:
    """Return the content of a file: names and tensors, perhaps inside of what a training script saves.

    Args:
        path: `.safetensors`; any other suffix is a file of `torch.save`, read with `weights_only`.

    Raises:
        UserError: no such file, a damaged file, or one with objects of other programs.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_harmless_types()), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of pickle protocols and TorchScript: what fails is reported below
            content = torch.load(path, map_location="cpu", weights_only=True)
            _check_records(path)
            return content
    except FileNotFoundError:
        names = list_names()
        also = f"the name of shipped weights ({names}), " if names else ""
        raise UserError(
            f"model.weights: {path} does not exist; give a .safetensors or .pth file, a run folder, {also}a "
            "name of torchvision's weights such as IMAGENET1K_V2, `pretrained` for a network of timm, or null"
        ) from None
    except Exception as error:  # damaged bytes end the reading with errors of almost any type
        raise UserError(f"model.weights: {path} cannot be read ({_reason(error)}); {REMEDY}") from None


def _check_records(path: Path) -> None:
    """Compare the numbers in a file of `torch.save` with their checksums, which `torch.load` does not.

    Raises:
        BadZipFile: a record is damaged. If all records are, the file was written without checksums.
    """
    if not zipfile.is_zipfile(path):
        return  # as torch before 1.6 wrote it, without checksums
    with zipfile.ZipFile(path) as file:
        damaged = []
        for name in file.namelist():
            try:
                with file.open(name) as record:
                    while record.read(_CHUNK):
                        pass
            except zipfile.BadZipFile:
                damaged.append(name)
    if damaged and len(damaged) < len(file.namelist()):
        raise zipfile.BadZipFile(f"it is damaged: the checksum of {damaged[0]} is another")


def _reason(error: Exception) -> str:
    """Describe why a file cannot be read. Torch's own messages advise to run the code in the file."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return f"it holds more than tensors: {refused[1]}, which could run code and is not loaded"
    if "TorchScript" in str(error):
        return "it is a TorchScript archive"
    if isinstance(error, EOFError) or "PytorchStreamReader" in str(error):
        return "it is empty, damaged, or ends too early"
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    if isinstance(error, SafetensorError | MemoryError | zipfile.BadZipFile) or type(error) is RuntimeError:
        return first_line(error)
    return "it was not written by torch.save, is damaged, or holds more than tensors"


def _harmless_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the types that training scripts save beside weights, with their names in a pickle.

    None of them runs code of the file. Types of libraries that may be missing are read as plain ones.
    """
    multiarray = {
        f"numpy.{core}.multiarray.{function.__name__}": function
        for core in ("core", "_core")  # of numpy 1 and 2
        for function in (np._core.multiarray.scalar, np._core.multiarray._reconstruct)  # type: ignore[attr-defined]
    }
    dtypes = {
        f"numpy.dtypes.{type(np.dtype(code)).__name__}": type(np.dtype(code))
        for code in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "?", "U", "S")
    }
    paths = {
        f"{module}.{name}": PureWindowsPath if "Windows" in name else PurePosixPath
        for module in ("pathlib", "pathlib._local")  # the second is that of Python 3.13
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    }
    lightning = {
        f"{module}.AttributeDict": dict
        for module in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "pytorch_lightning.utilities.parsing",
        )
    }
    names: dict[str, Callable[..., Any]] = {
        "argparse.Namespace": argparse.Namespace,
        "types.SimpleNamespace": types.SimpleNamespace,
        "collections.defaultdict": _without_default,
        "datetime.datetime": datetime.datetime,
        "datetime.timedelta": datetime.timedelta,
        "torch.torch_version.TorchVersion": str,
        **{f"builtins.{plain.__name__}": plain for plain in (dict, list, int, float, str, bool)},
        "numpy.dtype": np.dtype,
        "numpy.ndarray": np.ndarray,
        **multiarray,
        **dtypes,
        **paths,
        **lightning,
    }
    return [(harmless, name) for name, harmless in names.items()]


def _without_default(*_: object) -> dict[Any, Any]:
    """Stand for `collections.defaultdict`, whose items are set afterwards."""
    return {}
