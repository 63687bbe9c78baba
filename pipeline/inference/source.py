"""Finds a trained network: in a checkpoint of a run, or among the weights that are shipped."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.config import Config, load_values
from pipeline.errors import UserError, first_line
from pipeline.inference.hub_folder import read_hub_config
from pipeline.inference.hub_names import CONFIG, is_hub_folder
from pipeline.inference.hub_names import WEIGHTS as HUB_WEIGHTS
from pipeline.inference.preprocessing import InputSpec
from pipeline.pretrained.registry import Shipped, find_shipped, list_names
from pipeline.run.checkpoint import EMA, WEIGHTS, load_weights, newest_intact, verify
from pipeline.run.folder import RunFolder, find_run
from pipeline.run.named_checkpoint import best_checkpoint, named_checkpoint

_log = logging.getLogger(__name__)

# The arithmetic in which the accuracy of shipped weights is measured, on any device: an override, and the
# beginning of the keys that replace it.
_EXACT = {"precision.mode=fp32": "precision.", "runtime.tf32=false": "runtime.tf32="}


@dataclass(frozen=True)
class Source:
    """A trained network that is not built yet.

    Attributes:
        config: of its training.
        inputs: its preprocessing and its class names; None if the data set must tell.
        run: its run folder; None for shipped weights.
        checkpoint: the folder of its weights in the run folder; None for shipped weights.
        ema: True if the weights are the moving average.
        shipped: the shipped weights; None for those of a run.
        hub: the folder of `export --format hub`; None for others.
        name: of the network in that folder.
    """

    config: Config
    inputs: InputSpec | None
    run: RunFolder | None = None
    checkpoint: Path | None = None
    ema: bool = False
    shipped: Shipped | None = None
    hub: Path | None = None
    name: str = ""

    def read_weights(self) -> dict[str, torch.Tensor]:
        """Read the weights to the CPU, by their names in the network. Those of half precision stay in it.

        Raises:
            UserError: the file is missing or damaged.
        """
        if self.shipped is not None:
            return load_file(self.shipped.verified_path())
        if self.hub is not None:
            return _read_hub_weights(self.hub)
        assert self.checkpoint is not None
        return load_weights(self.checkpoint, EMA if self.ema else WEIGHTS)

    def __str__(self) -> str:
        if self.hub is not None:
            return str(self.hub)
        return str(self.checkpoint) if self.shipped is None else self.shipped.name


def find_source(path: str | Path, which: str, overrides: Sequence[str], *, ema: bool) -> Source:
    """Find the network of a run's checkpoint, or shipped weights. The arguments are those of `load_trained`.

    Raises:
        UserError: no such run or checkpoint, a damaged checkpoint, one without a moving average, or a choice
            of a checkpoint for shipped weights.
    """
    shipped = find_shipped(path)
    if shipped is not None:
        return _of_shipped(shipped, which, overrides, ema)
    if is_hub_folder(folder := Path(path)):
        return _of_hub(folder, which, overrides, ema)
    run = find_run(Path(path), list_names)
    config = run.read_config(overrides)
    checkpoint = _checkpoint(run, which)
    if ema and not (checkpoint / EMA).is_file():
        raise UserError(
            f"{checkpoint}: holds no moving average of the weights; train with ema.decay, or leave --ema out"
        )
    if not run.inputs.is_file():
        return Source(config, None, run, checkpoint, ema)
    recorded = InputSpec.read(run.inputs)
    config = _with_statistics(config, recorded)
    return Source(config, recorded.under(config), run, checkpoint, ema)


def _of_shipped(shipped: Shipped, which: str, overrides: Sequence[str], ema: bool) -> Source:
    _refuse_choices(f"{shipped.name} names shipped weights, which have", which, ema)
    config = load_values(shipped.config, f"{shipped.name} in registry.json", in_float32(overrides))
    recorded = InputSpec(**shipped.inputs.model_dump())
    config = _with_statistics(config, recorded)
    return Source(config, recorded.under(config), shipped=shipped)


def _of_hub(folder: Path, which: str, overrides: Sequence[str], ema: bool) -> Source:
    _refuse_choices(f"{folder} holds one network for the Hub, and", which, ema)
    name, values, recorded = read_hub_config(folder)
    config = load_values(values, str(folder / CONFIG), in_float32(overrides))
    config = _with_statistics(config, recorded)
    return Source(config, recorded.under(config), hub=folder, name=name)


def _read_hub_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / HUB_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / HUB_WEIGHTS}: cannot be read ({first_line(error)}); export or download it again"
        ) from None


def _refuse_choices(has: str, which: str, ema: bool) -> None:
    """Refuse the choice of a checkpoint or of the moving average where there is none.

    Args:
        has: the network, as the beginning of a sentence.
        which, ema: of `load_trained`.
    """
    for option, given in ((f"--checkpoint {which}", which != "last"), ("--ema", ema)):
        if given:
            raise UserError(
                f"{option}: {has} no checkpoints and no moving average; leave {option.partition(' ')[0]} "
                "out, or give a run folder"
            )


def in_float32(overrides: Sequence[str]) -> list[str]:
    """Add the keys of computing in float32 to overrides, unless they set another precision.

    >>> in_float32(["data.root=x", "precision.mode=bf16"])
    ['runtime.tf32=false', 'data.root=x', 'precision.mode=bf16']
    """
    exact = [key for key, given in _EXACT.items() if not any(item.startswith(given) for item in overrides)]
    return [*exact, *overrides]


def _with_statistics(config: Config, recorded: InputSpec) -> Config:
    """Set the run's mean and standard deviation, unless the config gives them.

    They are not computed again: the data set, or the part held out of it, may have changed.
    """
    if config.data.mean is not None:
        return config
    data = config.data.model_copy(update={"mean": recorded.mean, "std": recorded.std})
    return config.model_copy(update={"data": data})


def _checkpoint(run: RunFolder, which: str) -> Path:
    if which == "last":
        newest, damaged = newest_intact(run.checkpoints)
        if newest is None:
            message = f"{run.checkpoints}: no intact checkpoint; train again, or evaluate another run"
            raise UserError("\n".join([message, *damaged]))
        for message in damaged:
            _log.warning("%s; %s is used", message, newest.name)
        return newest
    folder = best_checkpoint(run) if which == "best" else named_checkpoint(run, which, "--checkpoint")
    verify(folder)
    return folder
