"""Computes the operations and the bytes that a whole training takes at least, and the seconds of both."""

from collections.abc import Iterator

from benchmarks.publish.whole_runs import Floor, FloorPart
from pipeline.config import Views
from pipeline.optim.parts import partition
from pipeline.profiling.layer_work import LayerPass, Work, element_bytes, layer_passes, optimizer_passes
from pipeline.training.phases import Phase
from pipeline.training.trainer import Trainer

LOADING, EVALUATION = "augmentation", "evaluation"
_PIXEL_BYTES = 1  # of a channel, as the images lie in memory
_NUM_VIEWS = {"none": 1, "mirror": 2, "mirror_shift": 6}


def floor_of(trainer: Trainer, best: Work) -> Floor:
    """Return the least work of a run by kind of kernel, and its least time on a device.

    `pipeline/profiling/layer_work.py` states the model. A run is all steps of all phases, each with its
    images loaded (read as uint8, written as the network reads them) and its weights updated, then one
    evaluation of the weights, and one of their moving average if there is one, with all views. Losses, moving
    averages and the whitening's own computation do not count.

    Args:
        trainer: of one process, with images of one size in memory.
        best: operations and bytes that the device does in a second, both known.
    """
    parts: dict[str, FloorPart] = {}
    for times, passes in _passes(trainer):
        for each in passes:
            before = parts.get(each.kind, FloorPart(kind=each.kind, flops=0, num_bytes=0, seconds=0))
            parts[each.kind] = FloorPart(
                kind=each.kind,
                flops=before.flops + times * each.flops,
                num_bytes=before.num_bytes + times * each.num_bytes,
                seconds=before.seconds + times * each.seconds(best),
            )
    assert best.flops and best.num_bytes
    return Floor(
        flops_per_s=best.flops,
        bytes_per_s=best.num_bytes,
        parts=tuple(sorted(parts.values(), key=lambda part: -part.seconds)),
    )


def steps_of_phases(trainer: Trainer) -> list[tuple[Phase, int]]:
    """Return each phase of a run with its number of steps; 0 for one that begins after the end."""
    phases, total = trainer.step.phases, trainer.plan.total_steps
    ends = [*(phase.first_step for phase in phases[1:]), total]
    return [
        (phase, max(min(end, total) - phase.first_step, 0)) for phase, end in zip(phases, ends, strict=True)
    ]


def _passes(trainer: Trainer) -> Iterator[tuple[int, list[LayerPass]]]:
    """Yield the passes of a step of each phase with its number of steps, then those of the evaluation."""
    config, model = trainer.config, trainer.state.model
    weights = partition(config.optimizer, model)
    shape, size = _shape(trainer), element_bytes(config.precision)
    batch_size = config.data.batch_size
    load = _load(shape, batch_size, size)
    for phase, steps in steps_of_phases(trainer):
        with phase.without_ended():
            network = layer_passes(model, shape, batch_size, size)
            update = optimizer_passes(config.optimizer, weights)
        yield steps, [load, *network, *update]
    num_images = trainer.loaders.test.num_samples
    yield 1, [_load(shape, num_images, size)]
    num_seen = _num_seen(config.evaluation.test_views, num_images)
    passes = layer_passes(model, shape, num_seen, size, training=False)
    networks = 1 if trainer.state.ema is None else 2
    yield networks, [LayerPass(each.layer, EVALUATION, each.flops, each.num_bytes) for each in passes]


def _load(shape: tuple[int, int, int], num_images: int, size: int) -> LayerPass:
    channels, height, width = shape
    pixels = num_images * channels * height * width
    return LayerPass("", LOADING, 0.0, pixels * (_PIXEL_BYTES + size))


def _shape(trainer: Trainer) -> tuple[int, int, int]:
    size = trainer.config.image_size
    assert trainer.splits is not None
    return trainer.splits.num_channels, size, size


def _num_seen(views: Views, num_images: int) -> int:
    """Return the number of images that a network sees in an evaluation, every view counted."""
    return num_images + (_NUM_VIEWS[views.kind] - 1) * views.count(num_images)
