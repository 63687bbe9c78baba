"""Defines the section `schedule`: one class for the shapes that fall smoothly, one for steps."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Kinds, Section, as_tuple
from pipeline.config.durations import Duration

Milestones = Annotated[tuple[Duration, ...], BeforeValidator(as_tuple)]


class _AnySchedule(Section):
    """The keys that all schedules have."""

    warmup: Duration = Field(default="25%", description="Rise to the peak learning rate")
    start_fraction: float = Field(
        default=0.04,
        ge=0,
        le=1,
        description="Learning rate at step 0, as a fraction of the peak, where there is warm-up",
    )


class SmoothSchedule(_AnySchedule):
    name: Literal["linear", "cosine", "one_cycle"] = "linear"
    final_fraction: float = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end, as a fraction of the peak"
    )


class StepSchedule(_AnySchedule):
    name: Literal["step"] = "step"
    milestones: Milestones = Field(
        default=(), description="When the learning rate is multiplied by `schedule.gamma`"
    )
    gamma: float = Field(default=0.1, gt=0, lt=1, description="Factor at each milestone")


ScheduleConfig = Annotated[
    SmoothSchedule | StepSchedule,
    Field(discriminator="name"),
    Kinds(
        "name",
        "linear",
        "Shape: a linear warm-up, then `linear` falls in a line, `cosine` along half a cosine, `step` at the "
        "milestones; `one_cycle` rises and falls along half a cosine each",
    ),
]
