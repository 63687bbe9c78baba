"""Compiles the step of a recipe before any training, and carries what was compiled to another machine.

A file of compiled code is a zip archive: torch's own artifacts, the kernels of Triton, without a GPU the
libraries that inductor's C++ was compiled to, which torch leaves out, and a description of the software and
the hardware that they fit.
"""

import hashlib
import io
import json
import logging
import os
import platform
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.atomic_io import write_whole
from pipeline.config import Config, check_compiles
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.build import build_loaders
from pipeline.data.datasets.counts import count_images, num_classes_of
from pipeline.data.datasets.image_set import ImageSet
from pipeline.data.datasets.splits import Splits
from pipeline.distributed.processes import Processes
from pipeline.errors import UserError
from pipeline.process.cache_dirs import cache_folder
from pipeline.training.trainer import Trainer

_ABOUT, _ARTIFACTS = "about.json", "artifacts.bin"
_TRITON, _LIBRARIES = "triton/", "inductor/"
_FOLDER = "@TRITON_CACHE_DIR@"  # stands for the folder that Triton's lists of files name


def compile_step(config: Config, processes: Processes) -> None:
    """Compile, and on a GPU capture, the training step and the evaluation, on random images.

    Nothing is read of the data set but the names of its files, if it is on this machine, and nothing is
    written but the compile caches. On a GPU, call this inside `side_stream`.

    Raises:
        UserError: the config compiles nothing on this device.
    """
    check_compiles(config.compile, processes.device.type)
    data = config.data.model_copy(update={"loader": "synthetic", "holdout": 0})
    augment = config.augment.model_copy(update={"progressive": ()})
    synthetic = config.model_copy(update={"data": data, "augment": augment})
    splits = _random_splits(config)
    loaders = build_loaders(synthetic, splits, processes.device, processes.shard)
    trainer = Trainer.build(synthetic, splits, processes, loaders=loaders)
    for batch in trainer.loaders.train.batches_from(0):
        trainer.step(batch)
        if trainer.step.settled:
            break
    trainer.evaluate_weights(trainer.loaders.test)


def _random_splits(config: Config) -> Splits:
    """Return a data set of the same classes and image sizes: a batch for training, and one for testing."""
    data, size, num_test = config.data, config.image_size, config.data.eval_batch_size
    with suppress(UserError):  # the data set may not be on this machine
        num_test = min(num_test, count_images(data, config.seed).test)
    num_classes = num_classes_of(config)

    def noise(count: int) -> ImageSet:
        images = np.random.default_rng(0).integers(0, 256, (count, size, size, NUM_CHANNELS), np.uint8)
        return ImageSet(images, np.arange(count) % num_classes)

    middle = (0.5,) * NUM_CHANNELS
    names = tuple(str(number) for number in range(num_classes))
    return Splits(noise(data.batch_size), noise(num_test), None, names, middle, middle)


def save_compiled(file: Path) -> int:
    """Write what this process has compiled, or found in the caches, to a file; return its size in bytes.

    Raises:
        UserError: the file cannot be written.
    """
    artifacts = torch.compiler.save_cache_artifacts()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_ABOUT, json.dumps(describe_compiler(), indent=1))
        archive.writestr(_ARTIFACTS, artifacts[0] if artifacts is not None else b"")
        _add_files(archive, _TRITON, "*")
        if not torch.cuda.is_available():
            _add_files(archive, _LIBRARIES, "*.so")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content.getvalue())
    except OSError as error:
        raise UserError(f"--save: {file} cannot be written ({error.strerror}); choose another file") from None
    return len(content.getvalue())


def _add_files(archive: zipfile.ZipFile, prefix: str, pattern: str) -> None:
    """Add the files of a cache to an archive, below a prefix."""
    folder = _folder_of(prefix)
    for path in sorted(folder.rglob(pattern)):
        if path.is_file():
            data = path.read_bytes()
            if path.name.startswith("__grp__"):
                data = data.replace(os.fsencode(folder), _FOLDER.encode())
            archive.writestr(f"{prefix}{path.relative_to(folder)}", data)


def load_compiled(file: Path) -> None:
    """Put the content of a file into the compile caches of this machine, if all of it can be read. Load only
    files that you trust: they hold code.

    Raises:
        UserError: the file cannot be read, was made by other software or for another GPU, or the cache cannot
            be written.
    """
    artifacts, kernels = _read_archive(file)
    logging.getLogger("torch.compiler._cache").setLevel(logging.ERROR)  # it would print a traceback
    try:
        if artifacts and torch.compiler.load_cache_artifacts(artifacts) is None:
            raise _unreadable(file, f"torch cannot read {_ARTIFACTS} in it")
        for path, data in kernels.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
    except OSError as error:
        raise UserError(
            f"--load: {error.filename or cache_folder()} cannot be written ({error.strerror}); free space "
            "there, or choose another cache folder (XDG_CACHE_HOME)"
        ) from None


def _read_archive(file: Path) -> tuple[bytes, dict[Path, bytes]]:
    """Return torch's artifacts, and the content of each file of Triton's and inductor's caches."""
    try:
        with zipfile.ZipFile(file) as archive:
            _check_fits(file, dict(json.loads(archive.read(_ABOUT))))
            kernels = dict(
                _place_kernel(prefix, name.removeprefix(prefix), archive.read(name))
                for prefix in (_TRITON, _LIBRARIES)
                for name in archive.namelist()
                if name.startswith(prefix)
            )
            return archive.read(_ARTIFACTS), kernels
    except UserError:
        raise
    # RuntimeError: encrypted; a damaged archive may also name a compression that does not exist
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, reason: object) -> UserError:
    return UserError(
        f"--load: {file} cannot be read ({reason}); give a file that `compile CONFIG --save` has made"
    )


def describe_compiler() -> dict[str, Any]:
    """Return what compiled code depends on: versions, and the kind of the GPU, or else of the CPU."""
    on_gpu = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name(0) if on_gpu else None,
        "capability": list(torch.cuda.get_device_capability(0)) if on_gpu else None,
        "cpu": None if on_gpu else _describe_cpu(),
    }


def _describe_cpu() -> str:
    """Return the name of the CPU and a hash of its instruction sets: code is compiled for those it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    values: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        values[key.strip()] = value.strip()
    flags = " ".join(sorted(values.get("flags", values.get("Features", "")).split()))
    name = values.get("model name", platform.machine())
    return f"{name} ({hashlib.sha256(flags.encode()).hexdigest()[:8]})"


def _check_fits(file: Path, about: dict[str, Any]) -> None:
    here = describe_compiler()
    other = [f"{key} {about.get(key)}, here {here[key]}" for key in here if about.get(key) != here[key]]
    if other:
        raise UserError(f"--load: {file} was made for {'; '.join(other)}; make it on a machine like this one")


def _place_kernel(prefix: str, name: str, data: bytes) -> tuple[Path, bytes]:
    """Return path and content of a file in the cache of this machine that belongs to the prefix."""
    folder = _folder_of(prefix)
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name}: not a name in the cache")
    if path.name.startswith("__grp__"):
        data = data.replace(_FOLDER.encode(), os.fsencode(folder))
    return path, data


def _folder_of(prefix: str) -> Path:
    return Path(os.environ["TRITON_CACHE_DIR" if prefix == _TRITON else "TORCHINDUCTOR_CACHE_DIR"])
