"""Loads a trained network from its run folder or from shipped weights, or copies one from `fit`.

The network is fresh, eager and float32.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.argument_types import check_type
from pipeline.config import Config, UnscaledPrecision
from pipeline.data import (
    Loader,
    Samples,
    Splits,
    build_test_loader,
    check_class_names,
    load_splits,
    load_test,
)
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.image_set import check_pixels
from pipeline.distributed.processes import pick_device
from pipeline.errors import UserError, first_line
from pipeline.inference.preprocessing import InputSpec
from pipeline.inference.shown_loader import show_loader
from pipeline.inference.source import Source, find_source
from pipeline.pretrained.registry import Shipped
from pipeline.run.folder import RunFolder
from pipeline.training.build import build_raw_model, set_backends
from pipeline.training.evaluate import predict
from pipeline.training.own_parts import check_parameters, naming_images, try_network

_BATCH_SIZE = 256  # images in one forward pass


@dataclass(frozen=True)
class Trained:
    """A trained network: raw, eager, float32, in evaluation mode, on a device.

    Attributes:
        config: of the run.
        model: from normalised (N, 3, H, W) images to (N, K) logits.
        inputs: the preprocessing of its images, and its class names.
        device: of the network.
        run: its run folder; None if it has none.
        checkpoint: the folder that the weights were read from; None if there is none.
        ema: True if the weights are the moving average.
        shipped: the entry of the registry, if these are shipped weights.
        hub_name: name of the network, if it was read from a folder for the Hub; else empty.
    """

    config: Config
    model: nn.Module
    inputs: InputSpec
    device: torch.device
    run: RunFolder | None = None
    checkpoint: Path | None = None
    ema: bool = False
    shipped: Shipped | None = None
    hub_name: str = ""

    @property
    def name(self) -> str:
        """Name of the run folder, of the shipped weights or in the Hub; empty if it has none."""
        if self.hub_name:
            return self.hub_name
        if self.shipped is not None:
            return self.shipped.name
        return "" if self.run is None else self.run.path.name

    @classmethod
    def of(cls, config: Config, model: nn.Module, splits: Splits) -> "Trained":
        """Copy a network after `fit`, compiled or not; later training does not change the copy.

        Raises:
            UserError: names the argument that is of another type, or the network that does not return logits
                for the classes of the data.
        """
        for name, value, kind in (
            ("config", config, Config),
            ("model", model, nn.Module),
            ("splits", splits, Splits),
        ):
            check_type(name, value, kind)
        check_parameters(model)
        fresh = copy.deepcopy(model).float().eval().requires_grad_(False)  # a copy has no compiled call
        inputs, device = InputSpec.of(config, splits), next(fresh.parameters()).device
        if device.type == "meta":
            raise UserError("model: the network is on the meta device and has no weights; give one that has")
        size = inputs.image_size
        num_logits = try_network(fresh, torch.zeros(2, NUM_CHANNELS, size, size, device=device)).shape[1]
        if num_logits != inputs.num_classes:
            raise UserError(
                f"model: the network returns logits for {num_logits} classes, and the data has "
                f"{inputs.num_classes}; give it a head for {inputs.num_classes}"
            )
        return cls(config, fresh, inputs, device)._with_splits(splits)

    def _with_splits(self, splits: Splits | None) -> "Trained":
        """Set the data set that the property `splits` would read."""
        if splits is not None:
            self.__dict__["splits"] = splits
        return self

    @cached_property
    def splits(self) -> Splits:
        """The run's data set, read at the first access.

        Raises:
            UserError: the data set is missing, or has other classes than the network.
        """
        splits = load_splits(self.config.data, self.config.seed)
        check_class_names(splits.class_names, self.inputs.class_names)
        return splits

    @cached_property
    def test(self) -> Samples:
        """The test images of the run's data set, read at the first access. No training image is read.

        Raises:
            UserError: there are none, or they are of other classes than the network's.
        """
        if "splits" in self.__dict__:
            return self.splits.test
        config, streamed = self.config, self.inputs.crop is not None
        return load_test(config.data, config.seed, self.inputs.class_names, streamed=streamed)

    def test_loader(self, config: Config) -> Loader:
        """Build the loader of the test images, as the evaluation of the run shows them, under a config."""
        loader = build_test_loader(
            config,
            self.test,
            self.device,
            mean=self.inputs.mean,
            std=self.inputs.std,
            num_classes=self.inputs.num_classes,
        )
        return show_loader(loader, "test images")

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return logits, (N, K) float32 on the CPU, of images, (N, H, W, 3) uint8.

        Raises:
            UserError: other arrays, or images that the network does not take.
        """
        check_pixels(pixels := np.asarray(pixels))
        logits = [np.empty((0, self.inputs.num_classes), np.float32)]
        for start in range(0, max(len(pixels), 1), _BATCH_SIZE):
            batch = self.inputs.normalise(pixels[start : start + _BATCH_SIZE]).to(self.device)
            if len(batch):
                with torch.no_grad(), naming_images(batch):
                    logits.append(self.model(batch).float().cpu().numpy())
        return np.concatenate(logits)

    def test_logits(self) -> np.ndarray:
        """Return logits of the whole test set in order, (N, K) float32 on the CPU, with the run's loader."""
        config = self.config.model_copy(update={"precision": UnscaledPrecision(mode="fp32")})
        return predict(self.model, self.test_loader(config)).numpy()


def load_trained(
    path: str | Path,
    which: str = "last",
    overrides: Sequence[str] = (),
    device: torch.device | str | int | None = None,
    splits: Splits | None = None,
    *,
    ema: bool = False,
) -> Trained:
    """Load the network of one of a run's checkpoints, or shipped weights.

    The data set is not needed for that: it is read only if `test` or `splits` is accessed. Mean and standard
    deviation are the run's.

    Args:
        path: the run folder; a folder of `export --format hub`; or the name of shipped weights, such as
            `cifar10_resnet20`. The latter two compute in float32, unless the overrides say otherwise. A file
            or folder of the name of shipped weights is looked for first.
        which: `last`, `best`, a step, or the name of a checkpoint (`step-82`).
        overrides: keys that replace the run's, such as `data.root=DIR` if the data has moved.
        device: default: as `runtime.device` says.
        splits: the run's data, if it is in memory already.
        ema: take the moving average of the weights.

    Raises:
        UserError: no such run or checkpoint, a damaged file, a checkpoint without a moving average, or a
            choice of a checkpoint or of the moving average for shipped weights.
    """
    source = find_source(path, which, overrides, ema=ema)
    config, inputs = source.config, source.inputs
    set_backends(config, trains=False)
    device = pick_device(config) if device is None else _check_device(device)
    if inputs is None:
        splits = splits or load_splits(config.data, config.seed)
        inputs = InputSpec.of(config, splits)
    model = _build(source, inputs, device)
    origin = (source.run, source.checkpoint, source.ema, source.shipped, source.name)
    return Trained(config, model, inputs, device, *origin)._with_splits(splits)


def _check_device(device: torch.device | str | int) -> torch.device:
    """Return a device that holds tensors on this machine.

    Raises:
        UserError: there is none of this name or number.
    """
    try:
        torch.empty(1, device=device).cpu()  # a device without values, `meta`, fails here
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device: {str(device)!r} cannot be used ({first_line(error)}); give cpu, cuda, or None for the "
            "device of the run"
        ) from None


def _build(source: Source, inputs: InputSpec, device: torch.device) -> nn.Module:
    """Build the network, and load its weights."""
    model = build_raw_model(source.config, inputs.num_classes, device)
    try:
        model.load_state_dict(source.read_weights())
    except RuntimeError:  # torch's message names every tensor
        raise UserError(
            f"{source}: holds the weights of another network than {source.config.model.name} with these "
            "model keys; leave out the model keys that you gave, so that the run's are used"
        ) from None
    return model.eval()
