"""Progressive resizing (Touvron et al. 2019, arXiv:1906.06423, show why it costs no accuracy): which size training images have when."""

from pipeline.config import Config, to_steps
from pipeline.errors import UserError


def training_resolutions(config: Config, steps_per_epoch: int) -> tuple[tuple[int, int], ...]:
    """(First step of the run, height and width in pixels from then on), ascending, the first at step 0.

    Raises:
        UserError: `augment.progressive` is not in the order of time, or ends after the run.
    """
    total = to_steps(config.duration, steps_per_epoch)
    resolutions = [
        (to_steps(when, steps_per_epoch, total), size) for when, size in config.augment.progressive
    ]
    steps = [step for step, _ in resolutions]
    if steps != sorted(set(steps)):
        listed = ", ".join(
            f"{when} (step {step})" for (when, _), step in zip(config.augment.progressive, steps, strict=True)
        )
        raise UserError(
            f"augment.progressive: {listed} do not follow one another; give the earliest first, and each moment once"
        )
    if steps and steps[-1] >= total:
        when, size = config.augment.progressive[-1]
        raise UserError(
            f"augment.progressive: {when} (step {steps[-1]}) is not before the end of the run, {config.duration} (step {total}): no image "
            f"would have {size} pixels; give it earlier, or in percent"
        )
    if not steps or steps[0] > 0:
        resolutions.insert(0, (0, config.image_size))
    return tuple(resolutions)
