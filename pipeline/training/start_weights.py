"""Loads the weights that a run starts from: `model.weights`."""

import logging
from pathlib import Path

from torch import nn

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.models import load_pretrained, load_weights
from pipeline.models.library_weights import names_library_weights, read_library_weights
from pipeline.models.weights_file import find_weights_file
from pipeline.run.checkpoint import WEIGHTS, newest_intact, verify
from pipeline.run.folder import find_run
from pipeline.run.named_checkpoint import named_checkpoint, split_path

_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)  # which weights a run starts from is told, though it is no warning


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
        path = find_start_weights(config.model.weights)
        if is_main and path != Path(config.model.weights):  # a link such as `latest` may lead elsewhere later
            head = ", with an untrained head" if reset else ""
            _log.info("model.weights: taken from %s%s", path.resolve(), head)
        load_pretrained(model, path, is_main=is_main, reset_head=reset)


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
