"""Exports a trained network to a file for other programs, which is read back and compared before it counts.

All work is done on the CPU in float32, where no faster arithmetic (TF32) blurs the comparison.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.atomic_io import flush_to_disk, follow_umask, write_whole
from pipeline.config import dump_config, is_utf8
from pipeline.errors import UserError
from pipeline.inference.export_readme import describe, readme_of
from pipeline.inference.hub import open_hub_network, write_hub_files
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.training.build import build_raw_model

_CHECKED_IMAGES = 16
_FILES = {
    "safetensors": "model.safetensors",
    "hub": "model.safetensors",
    "torch-export": "model.pt2",
    "onnx": "model.onnx",
}
_WEIGHTS_ONLY = ("safetensors", "hub")
# Largest difference between a logit of the file and of the network, as a fraction of the largest logit.
# safetensors, hub: the same weights in the same code. torch-export: the same operators of torch, perhaps with
# another order of summation. onnx: another library's kernels.
TOLERANCE = {"safetensors": 0.0, "hub": 0.0, "torch-export": 1e-5, "onnx": 1e-4}


@dataclass(frozen=True)
class Exported:
    """A file that holds a network.

    Attributes:
        file: the file; a README.md beside it shows its use.
        difference: largest difference between a logit of the file and of the network, over random images.
        largest: the largest absolute logit of the network for these images.
        tolerance: the accepted difference, as a fraction of `largest`.
    """

    file: Path
    difference: float
    largest: float
    tolerance: float

    @property
    def summary(self) -> str:
        return (
            f"the logits of {_CHECKED_IMAGES} random images differ by at most {self.difference:.1e}, and the "
            f"largest is {self.largest:.1f} (accepted: {self.tolerance:g} of the largest)"
        )


class WithNormalisation(nn.Module):
    """A network that takes RGB images from 0 to 1 and normalises them itself.

    Shape: (B, 3, H, W) float32 → (B, K) logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


def export_run(
    path: str | Path,
    format: str,
    which: str = "last",
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    input: str = "unit",
    *,
    ema: bool = False,
) -> Exported:
    """Export the network of a run's checkpoint; the data set is not needed.

    Args:
        path, which, overrides, ema: as for `load_trained`.
        format: `safetensors` (weights, for this library), `hub` (a folder for the Hugging Face Hub),
            `torch-export` (a program for torch, in Python or
            C++) or `onnx` (for ONNX Runtime and others).
        output: the folder to write in; default: `export/FORMAT` in the run folder; for shipped weights
            `NAME-FORMAT` in the current folder.
        input: the input of the exported program: `unit`, RGB images from 0 to 1, which it normalises, or
            `normalised` images.

    Returns:
        The file, and the difference between its logits and the network's.

    Raises:
        UserError: a missing package, a folder that cannot be written, or a file whose logits are not the
            network's.
    """
    for name, given, known in (("format", format, tuple(_FILES)), ("input", input, ("unit", "normalised"))):
        if given not in known:
            raise UserError(f"{name}: {given!r} is none of {', '.join(known)}; choose one of them")
    trained = load_trained(path, which, overrides, torch.device("cpu"), ema=ema)
    folder = Path(output) if output is not None else _default_folder(trained, format)
    if not is_utf8(str(folder)):
        reason = "is not UTF-8, and exporters cannot write there"
        raise UserError(f"--output: {folder} {reason}; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return export(trained, format, folder, input)
    except OSError as error:
        file, reason = error.filename or folder, error.strerror or error
        raise UserError(
            f"{file}: cannot be written ({reason}); choose another folder with --output"
        ) from None


def _default_folder(trained: Trained, format: str) -> Path:
    return Path(f"{trained.name}-{format}") if trained.run is None else trained.run.exports / format


def export(trained: Trained, format: str, folder: Path, input: str = "unit") -> Exported:
    """Export a network on the CPU into an existing folder. Otherwise as `export_run`."""
    assert format in _FILES and input in ("unit", "normalised"), (format, input)
    assert trained.device.type == "cpu", trained.device
    if format in _WEIGHTS_ONLY:
        input = "normalised"
    # exporters warn of other memory layouts
    module = copy.deepcopy(trained.model).to(memory_format=torch.contiguous_format)
    if input == "unit":
        module = WithNormalisation(module, trained.inputs.mean, trained.inputs.std)
    module.eval()
    final = folder / _FILES[format]
    temporary = folder / f".new-{final.name}"
    description = describe(trained, input)
    try:
        run = _WRITERS[format](trained, module, temporary, description)
        exported = _compare(module, run, trained.inputs.image_size, final, TOLERANCE[format])
        follow_umask(temporary)
        flush_to_disk(temporary)
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    readme = readme_of(trained, format, description, final.name, exported.summary)
    if format == "hub":
        write_hub_files(trained, folder, readme)
        return _compare(module, open_hub_network(folder), trained.inputs.image_size, final, TOLERANCE[format])
    write_whole(folder / "README.md", readme)
    if format == "safetensors":
        write_whole(folder / "config.yaml", dump_config(trained.config))
    return exported


def _compare(
    module: nn.Module, run: Callable[[Tensor], Tensor], image_size: int, file: Path, tolerance: float
) -> Exported:
    """Compare the logits of the exported program with the network's.

    Raises:
        UserError: they differ by more than the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_CHECKED_IMAGES, 3, image_size, image_size, generator=generator)
    with torch.no_grad():
        expected, logits = module(images), run(images)
    difference, largest = (logits - expected).abs().max().item(), expected.abs().max().item()
    exported = Exported(file, difference, largest, tolerance)
    if not difference <= tolerance * largest:  # also if the difference is NaN
        raise UserError(
            f"export: {exported.summary}; nothing was saved; choose another --format, or another version of "
            "its package"
        )
    return exported


def _write_safetensors(
    trained: Trained, module: nn.Module, file: Path, description: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load_file, save_file

    save_file(
        {key: value.contiguous() for key, value in module.state_dict().items()}, file, metadata=description
    )
    fresh = build_raw_model(trained.config, trained.inputs.num_classes, torch.device("cpu"))
    fresh = fresh.to(memory_format=torch.contiguous_format).eval()
    fresh.load_state_dict(load_file(file))
    return fresh


def _write_torch_export(
    trained: Trained, module: nn.Module, file: Path, description: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    example, batch = _example(trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's internals
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, file, extra_files=description)
        return torch.export.load(file).module()


def _write_onnx(
    trained: Trained, module: nn.Module, file: Path, description: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"export: --format onnx needs the package {package}; pip install -e '.[onnx]'")
    example, batch = _example(trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's internals
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["images"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(description)
    program.save(file)
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _example(trained: Trained) -> tuple[Tensor, torch.export.Dim]:
    """Return an input of two images, and the dimension that says that any number of images is allowed."""
    size = trained.inputs.image_size
    return torch.zeros(2, 3, size, size), torch.export.Dim("batch", min=1)


_WRITERS = {
    "safetensors": _write_safetensors,
    "hub": _write_safetensors,
    "torch-export": _write_torch_export,
    "onnx": _write_onnx,
}
