"""Describes a network in the files that the Hugging Face Hub takes beside its weights."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import yaml
from torch import Tensor

from pipeline.atomic_io import write_json, write_whole
from pipeline.config import Config, FileData, default_values, flatten, leaf_fields
from pipeline.config.base import FilePath, OptionalFilePath
from pipeline.inference.hub_folder import repository_name
from pipeline.inference.hub_names import CONFIG
from pipeline.inference.preprocessing import InputSpec
from pipeline.inference.trained_model import Trained
from pipeline.run.records import RunResult

# of data sets whose own name does not tell the images
_NAMES = {"folder": "a folder of images", "shards": "shards of images"}


def write_hub_files(trained: Trained, folder: Path, readme: str) -> None:
    """Write config.json, preprocessor_config.json and the model card beside the weights.

    Args:
        trained: the network.
        folder: holds `model.safetensors`.
        readme: body of the card.
    """
    write_json(folder / CONFIG, _describe(trained))
    write_json(folder / "preprocessor_config.json", _preprocessing(trained.inputs))
    front = yaml.safe_dump(_front_matter(trained), sort_keys=False, allow_unicode=True)
    write_whole(folder / "README.md", f"---\n{front}---\n\n{readme}")


def open_hub_network(folder: Path) -> Callable[[Tensor], Tensor]:
    """Load the folder as `huggingface_hub` does, and return the network."""
    from pipeline.inference.hub_network import HubNetwork

    with contextlib.redirect_stdout(io.StringIO()):  # "Loading weights from local directory"
        return HubNetwork.from_pretrained(str(folder), strict=True).eval()


def _repository(config: Config) -> str:
    return repository_name(config.model.name, config.data.dataset)


def _describe(trained: Trained) -> dict[str, Any]:
    """Return config.json: the arguments of `HubNetwork`, and what other programs look for."""
    return {
        "architecture": trained.config.model.name,
        "num_classes": trained.inputs.num_classes,
        "name": trained.name or _repository(trained.config),
        "inputs": asdict(trained.inputs),
        "quickres": _portable(trained.config),
    }


def _portable(config: Config) -> dict[str, Any]:
    """Return the values of a config, without paths of this machine."""
    defaults, fields = default_values(), dict(leaf_fields())
    marks = [mark for kind in (FilePath, OptionalFilePath) for mark in get_args(kind)[1:]]
    nested: dict[str, Any] = {}
    for key, value in flatten(config.model_dump(mode="json")).items():
        section, _, name = key.rpartition(".")
        is_path = any(mark in marks for mark in fields[key].metadata)
        (nested.setdefault(section, {}) if section else nested)[name] = defaults[key] if is_path else value
    return nested


def _preprocessing(inputs: InputSpec) -> dict[str, Any]:
    """Return the preprocessing in the words of the Transformers library."""
    size = inputs.image_size
    return {
        "do_resize": True,
        "size": {"shortest_edge": inputs.resized},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(inputs.mean),
        "image_std": list(inputs.std),
    }


def _front_matter(trained: Trained) -> dict[str, Any]:
    """Return the metadata of the card. The licence of the weights is their owner's choice."""
    data = trained.config.data
    of_files = isinstance(data, FileData)  # "shards" would say nothing about the images
    name = _repository(trained.config)
    card: dict[str, Any] = {
        "library_name": "quickres",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", trained.config.model.name, "pytorch_model_hub_mixin"],
        "metrics": ["accuracy"],
    }
    accuracy = accuracy_of(trained)
    if accuracy is not None:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {
                "name": _NAMES.get(data.dataset, data.dataset),
                "type": "imagefolder" if of_files else data.dataset,
                "split": "test",
            },
            "metrics": [{"type": "accuracy", "value": round(accuracy, 6), "name": "test accuracy"}],
        }
        card["model-index"] = [{"name": name, "results": [result]}]
    return card


def accuracy_of(trained: Trained) -> float | None:
    """Return the recorded test accuracy of these very weights, a fraction; None if none was recorded."""
    if trained.shipped is not None:
        return trained.shipped.accuracy
    if trained.run is None or trained.checkpoint is None or not trained.run.result.is_file():
        return None
    result, step = RunResult.read(trained.run.result), int(trained.checkpoint.name.removeprefix("step-"))
    if trained.ema:
        return result.test_ema_accuracy if step == result.steps else None
    known = {result.best_step: result.best_test_accuracy, result.steps: result.test_accuracy}
    return known.get(step)
