"""Checks a config against the run: its batch, the weights of its classes, and the capture of its step."""

from collections.abc import Sized

from pipeline.config.augment import MIX_SOURCES
from pipeline.config.schema import CompileConfig, Config
from pipeline.errors import UserError


def share(batch_size: int, num_parts: int, key: str, parts: str = "processes") -> int:
    """Return the images of a global batch that fall to one of its parts.

    Args:
        batch_size: images of the global batch.
        num_parts: number of equal parts.
        key: of the batch size, for the message.
        parts: the name of the parts in the message.

    Raises:
        UserError: the parts do not divide the batch; names the key, the parts and the nearest sizes that fit.
    """
    if batch_size % num_parts:
        below = batch_size // num_parts * num_parts
        sizes = " or ".join(str(size) for size in (below, below + num_parts) if size)
        raise UserError(f"{key}: {batch_size} images do not divide by {num_parts} {parts}; use {key}={sizes}")
    return batch_size // num_parts


def check_batches(config: Config, num_processes: int) -> None:
    """Check that the batches divide by processes, micro-batches, mixed and repeated images.

    Raises:
        UserError: one does not; names the key and the nearest sizes.
    """
    data, mix, repeats = config.data, config.augment.mix, config.augment.repeats
    group, key = MIX_SOURCES[mix], "data.batch_size"
    share(data.batch_size, num_processes, key)
    share(data.eval_batch_size, num_processes, "data.eval_batch_size")
    micro_batches = "micro-batches (processes times optimizer.accumulate)"
    share(data.batch_size, num_processes * config.optimizer.accumulate, key, micro_batches)
    mixed = f"(processes times the {group} images of each {mix} image)"
    share(data.batch_size, num_processes * group, key, mixed)
    different = share(data.batch_size, repeats, key, "showings of each image (augment.repeats)")
    if different < group:
        raise UserError(
            f"augment.repeats: {repeats} showings leave {different} different images in a batch of "
            f"{data.batch_size} (data.batch_size), and {mix} needs {group}; use fewer showings"
        )


def micro_batch_size(config: Config, num_processes: int) -> int:
    """Return the images of one forward pass in training, on each process."""
    return config.data.batch_size // (num_processes * config.optimizer.accumulate)


def check_class_weights(weights: Sized | str | None, num_classes: int) -> None:
    """Check that there is a weight for each class, if they are a list.

    Args:
        weights: as `loss.class_weights`, or the weights computed from it.
        num_classes: of the data set, or of the logits.

    Raises:
        UserError: they are of another length.
    """
    if weights is not None and not isinstance(weights, str) and len(weights) != num_classes:
        raise UserError(
            f"loss.class_weights: {len(weights)} weights for {num_classes} classes; give one for each class"
        )


def check_capture(config: CompileConfig, device: str) -> None:
    """Check that a step that is captured in a CUDA graph runs on a GPU.

    Args:
        config: the section `compile`.
        device: type of the device, `cuda` or `cpu`.

    Raises:
        UserError: it does not.
    """
    if config.captures_on(device) and device != "cuda":
        raise UserError(
            f"compile.mode: {config.mode} captures CUDA graphs, but the run is on the CPU; use "
            "compile.mode=default or compile.mode=none"
        )


def check_compiles(config: CompileConfig, device: str) -> None:
    """Check that something is compiled: the network, or with `graph` the kernels that are captured.

    Args:
        config: the section `compile`.
        device: type of the device, `cuda` or `cpu`.

    Raises:
        UserError: nothing is.
    """
    if not (config.compiles_on(device) or config.captures_on(device)):
        raise UserError(f"compile.mode: {config.mode} compiles nothing on {device}; use compile.mode=default")
