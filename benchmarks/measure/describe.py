"""What a record says of a config and of the machine that it ran on."""

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.config import Config, config_hash
from pipeline.training.build import compile_mode

_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}  # named in records; SGD is not


def describe_run(config: Config, environment: Mapping[str, Any], streamed: bool) -> dict[str, Any]:
    """The fields of `Record` that a config and `pipeline.run.environment.describe_environment` tell.

    Args:
        config: of the run.
        environment: where it ran, as in its env.json.
        streamed: whether its images stay in their files.
    """
    loader = describe_loader(config)
    return {
        "model": describe_model(config),
        "image_size": config.image_size,
        "dataset": config.data.dataset,
        "loader": loader,
        "augment": describe_augment(config, streamed) if loader != "synthetic" else None,
        "batch_size": config.data.batch_size,
        "world_size": environment["world_size"],
        "precision": config.precision.mode,
        "channels_last": config.runtime.channels_last,
        "compile_mode": compile_mode(config.compile, torch.device(environment["device"])),
        "config": config.model_dump(mode="json"),
        "config_hash": config_hash(config),
        "utc": environment["utc"],
        **describe_machine(environment),
    }


def describe_loader(config: Config) -> str:
    """What records call the loader."""
    return {"reference": "torchvision"}.get(config.data.loader, config.data.loader)


def describe_machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Record` that must be the same for two runs to be two measurements of one thing: code, versions and hardware."""
    packages, gpu = environment["packages"], environment["gpu"] or {}
    return {
        "commit": environment["commit"],
        "dirty": environment["dirty"],
        "gpu": gpu.get("name"),
        "gpu_count": gpu.get("count", 0),
        "power_limit_w": gpu.get("power_limit_w"),
        "driver": gpu.get("driver"),
        "cuda": gpu.get("cuda"),
        "torch": packages["torch"],
        "dali": next((version for name, version in packages.items() if "dali" in name), None),
        "python": environment["python"],
        "cpu_cores": environment["cpu_cores"],
    }


def describe_model(config: Config) -> str:
    """The network, its optimizer unless that is SGD, and which of our kernels it is made of.

    >>> from pipeline.config import load_config
    >>> describe_model(load_config(overrides=["optimizer.name=muon", "model.fused_norm=true"]))
    'resnet18 with Muon, fused norm'
    """
    optimizer = _OPTIMIZERS.get(config.optimizer.name)
    parts = [config.model.name + (f" with {optimizer}" if optimizer else "")]
    parts += ["fused norm"] * config.model.fused_norm + ["fused stem"] * config.model.fused_stem
    return ", ".join(parts)


def describe_augment(config: Config, streamed: bool = False) -> str:
    """What is done to training images; of STREAMED ones the crop is a random resized one.

    >>> from pipeline.config import load_config
    >>> describe_augment(load_config(overrides=["augment.cutout=16"]))
    'crop 4, flip, cutout 16'
    """
    augment = config.augment
    padded = f"crop {augment.crop_padding}" if augment.crop_padding else ""
    parts = ["resized crop" if streamed else padded, "flip" if augment.flip else ""]
    inside = " inside" if augment.cutout_mode == "inside" else ""
    parts.append(f"cutout {augment.cutout}{inside}" if augment.cutout else "")
    return ", ".join(part for part in parts if part) or "none"
