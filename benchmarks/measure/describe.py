"""Describes a config and the machine that it ran on, in the fields of a record."""

from collections.abc import Mapping
from typing import Any

from benchmarks.publish.records import Machine, Setting
from pipeline.config import Config, config_hash

_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}  # named in records; SGD is not


def describe_config(config: Config, environment: Mapping[str, Any], streamed: bool) -> Setting:
    """Return the fields of a record that a config determines.

    Args:
        config: of the run.
        environment: of the run, as in its env.json (`pipeline.run.environment.describe_environment`).
        streamed: True if its images stay in their files.
    """
    loader = describe_loader(config)
    return Setting(
        model=describe_model(config),
        image_size=config.image_size,
        dataset=config.data.dataset,
        loader=loader,
        augment=describe_augment(config, streamed) if loader != "synthetic" else None,
        batch_size=config.data.batch_size,
        world_size=environment["world_size"],
        precision=config.precision.mode,
        channels_last=config.runtime.channels_last,
        compile_mode=config.compile.mode_on(environment["device"]),
        config=config.model_dump(mode="json"),
        config_hash=config_hash(config),
    )


def describe_machine(environment: Mapping[str, Any]) -> Machine:
    """Return code, versions and hardware of a run, from its env.json."""
    packages, gpu = environment["packages"], environment["gpu"] or {}
    return Machine(
        commit=environment["commit"],
        dirty=environment["dirty"],
        gpu=gpu.get("name"),
        gpu_count=gpu.get("count", 0),
        power_limit_w=gpu.get("power_limit_w"),
        driver=gpu.get("driver"),
        cuda=gpu.get("cuda"),
        torch=packages["torch"],
        dali=next((version for name, version in packages.items() if "dali" in name), None),
        python=environment["python"],
        cpu_cores=environment["cpu_cores"],
    )


def describe_loader(config: Config) -> str:
    """Return the name of the loader in records."""
    return {"reference": "torchvision"}.get(config.data.loader, config.data.loader)


def describe_model(config: Config) -> str:
    """Return the network, its optimizer unless that is SGD, and its fused kernels.

    >>> from pipeline.config import load_config
    >>> describe_model(load_config(overrides=["optimizer.name=muon", "model.fused_norm=true"]))
    'resnet18 with Muon, fused norm'
    """
    optimizer = _OPTIMIZERS.get(config.optimizer.name)
    parts = [config.model.name + (f" with {optimizer}" if optimizer else "")]
    parts += ["fused norm"] * config.model.fused_norm + ["fused stem"] * config.model.fused_stem
    return ", ".join(parts)


def describe_augment(config: Config, streamed: bool = False) -> str:
    """Return the augmentation of training images; the crop of streamed images is a random resized one.

    >>> from pipeline.config import load_config
    >>> describe_augment(load_config(overrides=["augment.cutout=16"]))
    'crop 4, flip, cutout 16'
    >>> describe_augment(load_config(overrides=["augment.brightness=0.14", "augment.contrast=0.13"]))
    'crop 4, flip, brightness 0.14, contrast 0.13'
    """
    augment = config.augment
    reflected = " reflected" if augment.crop_border == "reflect" else ""
    padded = f"crop {augment.crop_padding}{reflected}" if augment.crop_padding else ""
    flip = {False: "", True: "flip", "alternating": "alternating flip"}[augment.flip]
    parts = ["resized crop" if streamed else padded, flip]
    inside = " inside" if augment.cutout_mode == "inside" else ""
    parts.append(f"cutout {augment.cutout}{inside}" if augment.cutout else "")
    parts.append(f"brightness {augment.brightness:g}" if augment.brightness else "")
    parts.append(f"contrast {augment.contrast:g}" if augment.contrast else "")
    return ", ".join(part for part in parts if part) or "none"
