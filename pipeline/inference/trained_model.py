"""A trained network, out of its run folder or straight from `fit`: fresh, eager, float32, with what its inputs and outputs mean."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.atomic_io import read_json
from pipeline.config import Config, load_config
from pipeline.data import Splits, build_loaders, load_splits
from pipeline.distributed.processes import pick_device
from pipeline.errors import UserError
from pipeline.inference.preprocessing import InputSpec
from pipeline.run.checkpoint import EMA, WEIGHTS, folder_of, load_weights, newest_intact, verify
from pipeline.run.folder import RunFolder, find_run
from pipeline.training.build import build_raw_model, set_backends
from pipeline.training.evaluate import predict

_log = logging.getLogger(__name__)

_BATCH_SIZE = 256  # images that are given to the network at once


@dataclass(frozen=True)
class Trained:
    """A trained network: raw, eager, float32, in evaluation mode, on a device.

    Attributes:
        config: of the run.
        model: from normalised (N, 3, H, W) images to (N, K) logits.
        inputs: what the network takes and what its outputs mean.
        device: where the network is.
        run: its run folder; None where there is none.
        checkpoint: the folder that the weights were read from; None likewise.
        ema: whether the weights are their moving average.
    """

    config: Config
    model: nn.Module
    inputs: InputSpec
    device: torch.device
    run: RunFolder | None = None
    checkpoint: Path | None = None
    ema: bool = False

    @classmethod
    def of(cls, config: Config, model: nn.Module, splits: Splits) -> "Trained":
        """A copy of a network as `fit` leaves it, compiled or not; later training leaves the copy alone."""
        fresh = copy.deepcopy(model).float().eval()  # a copy has no compiled call
        trained = cls(
            config, fresh.requires_grad_(False), InputSpec.of(config, splits), next(fresh.parameters()).device
        )
        trained.__dict__["splits"] = splits  # what the property would read
        return trained

    @cached_property
    def splits(self) -> Splits:
        """The run's data set, read when it is first asked for.

        Raises:
            UserError: it is not there, or has other classes than the network.
        """
        splits = load_splits(self.config.data, self.config.seed)
        if splits.class_names != self.inputs.class_names:
            raise UserError(
                f"data.root: the classes are {_first(splits.class_names)}, but the network was trained on "
                f"{_first(self.inputs.class_names)}; give the data set of the run"
            )
        return splits

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 → (N, K) float32, on the CPU, in float32."""
        with torch.no_grad():
            batches = (
                self.inputs.normalise(pixels[i : i + _BATCH_SIZE]) for i in range(0, len(pixels), _BATCH_SIZE)
            )
            return np.concatenate(
                [self.model(batch.to(self.device)).float().cpu().numpy() for batch in batches]
            )

    def test_logits(self) -> np.ndarray:
        """(N, K) float32 on the CPU: the whole test set, in order, by the run's loader, in float32."""
        precision = self.config.precision.model_copy(update={"mode": "fp32"})
        loader = build_loaders(
            self.config.model_copy(update={"precision": precision}), self.splits, self.device
        ).test
        return predict(self.model, loader).numpy()


def _first(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def load_trained(
    path: str | Path,
    which: str = "last",
    overrides: Sequence[str] = (),
    device: torch.device | None = None,
    splits: Splits | None = None,
    *,
    ema: bool = False,
) -> Trained:
    """Load the network of one of a run's checkpoints.

    The data set is not needed for that, and read only if `splits` is asked for. Statistics for normalising
    are those of the run.

    Args:
        path: the run folder.
        which: `last`, `best` or a step number.
        overrides: keys put over the run's config, such as `data.root=DIR` where the data has moved.
        device: default: as `runtime.device` says.
        splits: the run's data where it is in memory already.
        ema: take the moving average of the weights.

    Raises:
        UserError: no such run or checkpoint, a damaged one, or one without a moving average.
    """
    run = find_run(Path(path))
    config = load_config(run.config, overrides)
    set_backends(config)
    device = device or pick_device(config)
    checkpoint = _checkpoint(run, which)
    if ema and not (checkpoint / EMA).is_file():
        raise UserError(
            f"{checkpoint}: holds no moving average of the weights; train with ema.decay, or leave --ema out"
        )
    if (run.inputs).is_file():
        recorded = InputSpec.read(run.inputs)
        if (
            config.data.mean is None
        ):  # not computed anew: the data set, or the share held out of it, may have changed
            config = config.model_copy(
                update={"data": config.data.model_copy(update={"mean": recorded.mean, "std": recorded.std})}
            )
        inputs = recorded.under(config)
    else:
        splits = splits or load_splits(config.data, config.seed)
        inputs = InputSpec.of(config, splits)
    model = build_raw_model(config, inputs.num_classes, device)
    try:
        model.load_state_dict(load_weights(checkpoint, EMA if ema else WEIGHTS))
    except RuntimeError:  # torch's words name every tensor
        raise UserError(
            f"{checkpoint}: holds the weights of another network than {config.model.name} with these model keys; leave those out that you "
            "gave, and the run's own hold"
        ) from None
    trained = Trained(config, model.eval(), inputs, device, run, checkpoint, ema)
    if splits is not None:
        trained.__dict__["splits"] = splits
    return trained


def _checkpoint(run: RunFolder, which: str) -> Path:
    if which == "last":
        newest, damaged = newest_intact(run.checkpoints)
        if newest is None:
            raise UserError(
                "\n".join(
                    [
                        f"{run.checkpoints}: no intact checkpoint; train again, or evaluate another run",
                        *damaged,
                    ]
                )
            )
        for message in damaged:
            _log.warning("%s; %s is used", message, newest.name)
        return newest
    if which == "best":
        which = str(read_json(run.best)["step"])
    if not which.isdecimal():
        raise UserError(f"--checkpoint: {which!r} is neither last, best nor a step")
    folder = folder_of(run.checkpoints, int(which))
    if not folder.is_dir():
        kept = ", ".join(
            str(int(p.name.removeprefix("step-"))) for p in sorted(run.checkpoints.glob("step-*"))
        )
        raise UserError(f"--checkpoint: {run.path} keeps no step {which}; it keeps {kept or 'none'}")
    verify(folder)
    return folder
