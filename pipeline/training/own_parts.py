"""Checks a network and loaders that a Python program brings itself, before the first step."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.data import Batch, Loader, Loaders
from pipeline.errors import TrainingError, UserError, first_line

_REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
_TRIED_IMAGES = 2


def check_parameters(model: nn.Module) -> None:
    """Check that a network has parameters, with values.

    Raises:
        UserError: names the argument `model`, and the parameter.
    """
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UserError("model: the network has no parameters; give one with weights")
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise UserError(f"model: {name} has no shape yet; call the network once, with images")


def check_trainable(model: nn.Module, device: torch.device) -> None:
    """Check that a network can be trained: float32, on a device, with a parameter that is not frozen.

    Raises:
        UserError: names the argument `model`, and the parameter.
    """
    check_parameters(model)
    for name, parameter in model.named_parameters():
        if parameter.device != device:
            raise UserError(
                f"fit: the model is on {parameter.device}, the loaders deliver on {device}; "
                f"move the model with model.to({str(device)!r})"
            )
        if parameter.is_inference():
            raise UserError(
                f"model: {name} was made in torch.inference_mode(); build the network outside of it"
            )
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"model: {name} is {kind}; convert with model.float(), precision.mode does the rest"
            )
        if not parameter.isfinite().all():
            raise UserError(f"model: {name} holds NaN or infinity; give a network with finite weights")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "model: all parameters are frozen; set requires_grad_(True) for those that are to be trained"
        )


@contextmanager
def naming_images(images: Tensor) -> Iterator[None]:
    """Turn the errors of a network that does not take some images into a UserError.

    Args:
        images: (B, C, H, W), which are given to the network inside.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        shape, kind = " x ".join(map(str, images.shape[1:])), str(images.dtype).removeprefix("torch.")
        raise UserError(
            f"model: the network fails on images of {shape}, {kind} ({first_line(error)}); "
            "give a network for such images, or images that it takes"
        ) from error


def try_network(
    model: nn.Module, images: Tensor, autocast: AbstractContextManager[Any] | None = None
) -> Tensor:
    """Return the logits of one or two of the images, and leave the network and the random state as they were.

    Args:
        model: from (B, C, H, W) images to (B, K) logits; it is run eagerly, in evaluation mode.
        images: on the network's device.
        autocast: the precision; default: as the network is.

    Raises:
        UserError: the network does not take such images, or returns something else than logits.
    """
    eager = getattr(model, "_orig_mod", model)
    modes = [(module, module.training) for module in eager.modules()]
    some, on_gpu = images[:_TRIED_IMAGES], [images.device] if images.is_cuda else []
    try:
        with torch.random.fork_rng(on_gpu), torch.no_grad(), autocast or nullcontext(), naming_images(images):
            logits = eager.eval().forward(some)
    finally:
        for module, training in modes:
            module.training = training
    is_tensor = isinstance(logits, Tensor)
    if not is_tensor or logits.ndim != 2 or len(logits) != len(some) or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}" if is_tensor else f"a {type(logits).__name__}"
        raise UserError(
            f"model: the network returns {found} for {len(some)} images; it must return logits, "
            f"floating point ({len(some)}, number of classes)"
        )
    return logits


def check_batch(name: str, batch: Batch, device: torch.device) -> None:
    """Check the tensors of a batch: images (B, C, H, W) floating point, labels (B,) int64, valid (B,) bool.

    Raises:
        UserError: names the loader, the tensor, and what it has to be.
    """
    wanted = {
        "images": ("(B, C, H, W) floating point", lambda t: t.ndim == 4 and t.is_floating_point()),
        "labels": ("(B,) int64", lambda t: t.dtype == torch.int64 and t.shape == batch.images.shape[:1]),
        "valid": ("(B,) bool", lambda t: t.dtype == torch.bool and t.shape == batch.images.shape[:1]),
    }
    for part, (needed, fits) in wanted.items():
        tensor = getattr(batch, part, None)
        if not isinstance(tensor, Tensor):
            found = (
                f"{part} of type {type(tensor).__name__}" if hasattr(batch, part) else type(batch).__name__
            )
            raise UserError(
                f"loaders.{name}: a batch is {found}; give a Batch with {part} {needed}, a tensor"
            )
        if not fits(tensor) or tensor.device != device:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"loaders.{name}: {part} is {kind} {tuple(tensor.shape)} on {tensor.device}; "
                f"give {needed} on {device}"
            )


def check_classes(name: str, batch: Batch, num_logits: int, num_classes: int | None) -> None:
    """Check that a network has a logit for each class.

    A GPU does not detect a label without a logit: it reads other memory.

    Args:
        name: of the loader.
        batch: of the loader; its labels are looked at.
        num_logits: outputs of the network.
        num_classes: of the data, if it is known.

    Raises:
        UserError: there are too few logits, or a label is negative.
    """
    if num_classes is not None and num_logits < num_classes:
        raise UserError(
            f"model: the network returns logits for {num_logits} classes, and the data has {num_classes}; "
            f"give it a head for {num_classes}"
        )
    labels = batch.labels[batch.valid]
    wrong = labels[(labels < 0) | (labels >= num_logits)].tolist()
    if wrong:
        raise UserError(
            f"loaders.{name}: label {wrong[0]} is not in 0..{num_logits - 1}, the classes that the network "
            "returns logits for; correct the labels, or give the network another head"
        )


def check_loaders(loaders: Loaders) -> None:
    """Check that loaders have the attributes of `Loader`.

    Raises:
        UserError: names the loader and what it lacks.
    """
    for name, loader in vars(loaders).items():
        if name not in ("train", "test", "holdout") or (name == "holdout" and loader is None):
            continue
        needed = ("steps_per_epoch", "num_samples", "batches_from", "__iter__")
        lacking = [attribute for attribute in needed if not hasattr(loader, attribute)]
        if lacking:
            raise UserError(
                f"loaders.{name}: a {type(loader).__name__} has no {', '.join(lacking)}; "
                "give a loader of build_loaders, or an object with all attributes of Loader"
            )


class InspectedLoader:
    """A loader whose first batch is checked before anything is done with it.

    Args:
        loader: the caller's.
        check: raises UserError for a bad batch.
    """

    def __init__(self, loader: Loader, check: Callable[[Batch], None]):
        self.steps_per_epoch, self.num_samples = loader.steps_per_epoch, loader.num_samples
        self._loader, self._check, self._checked = loader, check, False

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield the loader's batches.

        Raises:
            TrainingError: the stream ends.
        """
        yield from self._inspected(self._loader.batches_from(step))
        raise TrainingError("loaders.train: the stream of batches has ended; batches_from yields without end")

    def __iter__(self) -> Iterator[Batch]:
        return self._inspected(iter(self._loader))

    def _inspected(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if not self._checked:
                self._check(batch)
                self._checked = True
            yield batch
