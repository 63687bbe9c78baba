"""Estimates the memory that training takes, and the largest batch that fits."""

from dataclasses import dataclass

from torch import nn

from pipeline.config import MIX_SOURCES, AdamwConfig, Config, to_bytes
from pipeline.data.batch import NUM_CHANNELS
from pipeline.models import build_model, num_parameters
from pipeline.models.flops import on_meta
from pipeline.models.freeze import freeze
from pipeline.profiling.model_summary import saved_bytes

_FLOAT32 = 4  # bytes
_USABLE = 0.95  # fraction of the memory to fill: the allocator leaves gaps
_MIB = 2**20


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of one process on its device, in bytes.

    Measured on an H200, ResNet-18 takes 5 % less, without the copy of a checkpoint.

    Attributes:
        weights: the network, its gradients, the optimizer's state, the moving average, the half-precision
            copy that autocast makes, and the copy of a checkpoint's content.
        images: the data set, if it is kept on the device.
        per_image: activations that autograd keeps for one image of a micro-batch.
        per_queued_image: batches ahead of the step, for one image of the process's share of the batch.
        num_images: images in that share.
        accumulate: micro-batches that the share is split into.
    """

    weights: int
    images: int
    per_image: int
    per_queued_image: int
    num_images: int
    accumulate: int

    @property
    def activations(self) -> int:
        return self.per_image * self.num_images // self.accumulate

    @property
    def total(self) -> int:
        return self.weights + self.images + self.activations + self.per_queued_image * self.num_images

    def largest(self, available: int) -> int:
        """Return the largest share of the batch that fits in as many micro-batches as now; 0 if none fits."""
        room = int(available * _USABLE) - self.weights - self.images
        return max(int(room / (self.per_queued_image + self.per_image / self.accumulate)), 0)


def estimate_memory(
    config: Config, num_processes: int, num_classes: int, num_resident: int
) -> MemoryEstimate:
    """Estimate the memory of one process of a run.

    The network is built on the meta device: nothing is computed or allocated.

    Args:
        config: of the run.
        num_processes: processes that share the batch.
        num_classes: of the data set.
        num_resident: images of the data set that the loader would keep on the device, if
            `data.resident_limit` allows it.
    """
    model, half = build_frozen(config, num_classes), config.precision.mode != "fp32"
    trained, every = num_parameters(model), sum(parameter.numel() for parameter in model.parameters())
    optimizer = 2 if isinstance(config.optimizer, AdamwConfig) else int(config.optimizer.momentum > 0)
    saved = (1 + (config.ema.decay is not None)) * every + optimizer * trained
    kept = saved + trained + (0.5 * every if half else 0) + saved  # gradients; half precision; a checkpoint
    pixels = NUM_CHANNELS * config.image_size**2
    resident = num_resident * pixels
    return MemoryEstimate(
        weights=int(kept * _FLOAT32),
        images=resident if resident <= to_bytes(config.data.resident_limit) else 0,
        per_image=saved_bytes(
            model, (NUM_CHANNELS, config.image_size, config.image_size), config.precision.mode
        ),
        per_queued_image=config.data.prefetch * pixels * (2 if half else _FLOAT32),
        num_images=config.data.batch_size // num_processes,
        accumulate=config.optimizer.accumulate,
    )


def build_frozen(config: Config, num_classes: int) -> nn.Module:
    """Build the network of a config on the meta device, with the parameters of `model.freeze` frozen.

    Raises:
        UserError: a pattern fits no parameter, or nothing is left to train.
    """
    model = build_model(config.model, num_classes, NUM_CHANNELS, config.image_size)
    freeze(model, config.model.freeze)
    return on_meta(model)


def what_fits(config: Config, num_processes: int, memory: MemoryEstimate, available: int) -> str:
    """Return the keys and values to change if a batch did not fit into AVAILABLE bytes."""
    size = config.data.batch_size
    unit = num_processes * config.optimizer.accumulate * MIX_SOURCES[config.augment.mix]
    # at most half: the batch did not fit, even if the estimate says so
    images = min(memory.largest(available) * num_processes, size // 2)
    rounded = images // unit * unit
    if rounded >= 64 * unit:
        rounded = images // (64 * unit) * (64 * unit)
    if not rounded:
        return "no batch fits by estimate: use a smaller model.name, or a smaller data.resident_limit"
    accumulate = ""
    if size > unit:
        counts = range(2, size + 1)
        parts = next(count for count in counts if size % (unit * count) == 0 and size // count <= rounded)
        parts *= config.optimizer.accumulate
        accumulate = f"optimizer.accumulate={parts} (the same batch in smaller parts), or "
    return (
        f"by estimate about {rounded} images fit into the available {available / _MIB:,.0f} MiB; use "
        f"{accumulate}data.batch_size={rounded} with optimizer.lr={config.optimizer.lr * rounded / size:.3g}"
    )
