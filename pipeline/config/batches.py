"""Checks that a global batch divides by processes, micro-batches and mixed images."""

from pipeline.config.data import MIX_SOURCES
from pipeline.config.schema import (
    Config,
)
from pipeline.errors import UserError


def share(batch_size: int, num_parts: int, key: str, parts: str = "processes") -> int:
    """Images of a global batch that fall to one part of it, a process by default.

    Raises:
        UserError: the parts do not divide the batch; names KEY, what the PARTS are, and the nearest sizes that they do divide.
    """
    if batch_size % num_parts:
        below = batch_size // num_parts * num_parts
        sizes = " or ".join(str(size) for size in (below, below + num_parts) if size)
        raise UserError(f"{key}: {batch_size} images do not divide by {num_parts} {parts}; use {key}={sizes}")
    return batch_size // num_parts


def check_batches(config: Config, num_processes: int) -> None:
    """Whether the batches divide by all that they are divided by.

    Raises:
        UserError: one does not; names the key and the nearest sizes.
    """
    for key, size in (
        ("data.batch_size", config.data.batch_size),
        ("data.eval_batch_size", config.data.eval_batch_size),
    ):
        share(size, num_processes, key)
    micro_batches = num_processes * config.optimizer.accumulate
    share(
        config.data.batch_size,
        micro_batches,
        "data.batch_size",
        "micro-batches (processes times optimizer.accumulate)",
    )
    group, method = MIX_SOURCES[config.augment.mix], config.augment.mix
    share(
        config.data.batch_size,
        num_processes * group,
        "data.batch_size",
        f"(processes times the {group} images of each {method} image)",
    )
