"""Loads the weights that a run starts from: `model.weights`."""

import logging
from pathlib import Path

from torch import nn

from pipeline.config import Config, ModelConfig
from pipeline.errors import UserError
from pipeline.models import load_pretrained, load_weights
from pipeline.models.library_weights import names_library_weights, read_library_weights
from pipeline.models.weights_file import find_weights_file
from pipeline.pretrained.registry import Shipped, find_shipped
from pipeline.process.notice import tell
from pipeline.run.checkpoint import WEIGHTS, newest_intact, verify
from pipeline.run.folder import find_run
from pipeline.run.named_checkpoint import named_checkpoint, split_path

_log = logging.getLogger(__name__)

# Keys of `model` that decide what a network computes with its weights, and the values that they have if the
# registry leaves them out. Those that act in training alone may differ.
_DECIDING = {
    "name": "resnet18",
    "shortcut": "B",
    "width": 1,
    "groups": 1,
    "squeeze_excitation": 0,
    "blur_pool": False,
}


def load_start_weights(model: nn.Module, config: Config, *, is_main: bool) -> None:
    """Copy the weights that `model.weights` names into the network; without them, do nothing.

    Args:
        model: as it was initialised, on any device.
        config: of the run.
        is_main: True on rank 0, which says what was taken, and warns.

    Raises:
        UserError: there are no such weights, or they are of another network.
    """
    reset = config.model.reset_head
    if names_library_weights(config.model):
        named = read_library_weights(config.model, config.image_size, progress=is_main)
        load_weights(model, *named, is_main=is_main, reset_head=reset)
    elif config.model.weights is not None:
        shipped = find_shipped(config.model.weights)
        if shipped is not None:
            _check_network(shipped, config.model)
        path = find_start_weights(config.model.weights)
        if is_main and path != Path(config.model.weights):  # a link such as `latest` may lead elsewhere later
            head = ", with an untrained head" if reset else ""
            tell(_log, "model.weights: taken from %s%s", path.resolve(), head)
        load_pretrained(model, path, is_main=is_main, reset_head=reset)


def _check_network(shipped: Shipped, model: ModelConfig) -> None:
    """Check that a network is that of shipped weights.

    Some other networks have weights of the same names and shapes: plain20 those of resnet20.

    Raises:
        UserError: it is another one; says the keys to set.
    """
    theirs = {key: shipped.config["model"].get(key, value) for key, value in _DECIDING.items()}
    different = {key: value for key, value in theirs.items() if getattr(model, key) != value}
    if different:
        keys = " ".join(f"model.{key}={_as_typed(value)}" for key, value in different.items())
        raise UserError(
            f"model.weights: {shipped.name} is of another network than the model keys describe; set {keys}"
        )


def _as_typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_start_weights(value: str) -> Path:
    """Return the file that `model.weights` names: itself, shipped weights, or those of a run or a checkpoint.

    Of a run, the newest checkpoint that is intact counts.

    Raises:
        UserError: there is no such run or checkpoint, or it has no intact weights.
    """
    path = find_weights_file(value)
    folder, name = split_path(path)
    if name is None and not path.is_dir():
        return path
    try:
        run = find_run(folder)
        if name is not None:
            checkpoint = named_checkpoint(run, name, str(folder))
            verify(checkpoint)
            return checkpoint / WEIGHTS
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None
    newest, damaged = newest_intact(run.checkpoints)
    if newest is None:
        raise UserError(
            "\n".join([f"model.weights: {folder} has no intact checkpoint; give another", *damaged])
        )
    return newest / WEIGHTS
