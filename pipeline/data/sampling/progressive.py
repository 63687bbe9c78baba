"""Computes the size of training images at each step: progressive resizing.

Touvron et al. 2019 (arXiv:1906.06423) show why it does not reduce the accuracy.
"""

from pipeline.config import Config, FileData, to_steps
from pipeline.errors import UserError


def training_resolutions(config: Config, steps_per_epoch: int) -> tuple[tuple[int, int], ...]:
    """Return pairs (first step, height and width in pixels from there on), ascending, the first at step 0.

    Raises:
        UserError: `augment.progressive` is not in the order of time, or its last size would never be used.
    """
    if not isinstance(config.data, FileData):
        return ((0, config.image_size),)
    total, progressive = to_steps(config.duration, steps_per_epoch), config.augment.progressive
    resolutions = [(to_steps(when, steps_per_epoch, total), size) for when, size in progressive]
    steps = [step for step, _ in resolutions]
    if steps != sorted(set(steps)):
        listed = ", ".join(
            f"{when} (step {step})" for (when, _), step in zip(progressive, steps, strict=True)
        )
        raise UserError(
            f"augment.progressive: {listed} are not in order; give the earliest first, and each moment once"
        )
    if steps and steps[-1] >= total:
        when, size = progressive[-1]
        raise UserError(
            f"augment.progressive: {when} (step {steps[-1]}) is not before the end of the run, "
            f"{config.duration} (step {total}): no image would have {size} pixels; "
            "give an earlier moment, or a percentage"
        )
    if not steps or steps[0] > 0:
        resolutions.insert(0, (0, config.image_size))
    return tuple(resolutions)
