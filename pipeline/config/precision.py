"""Defines the section `precision`: float16 has a loss scale, the other types have none."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Kinds, Section

# oneDNN has fp16 kernels only for CPUs with AVX512-FP16; elsewhere ResNet-20 took 7 to 40 times as long as in
# fp32.
SLOW_ON_CPU = (
    "fp16 on the CPU is many times slower than fp32 and bf16; without a GPU give precision.mode=bf16"
)


class ScaledPrecision(Section):
    mode: Literal["fp16"] = "fp16"
    init_scale: float = Field(default=65536.0, gt=0, le=2.0**40, description="First loss scale")
    growth_interval: int = Field(
        default=2000,
        ge=1,
        le=2**31 - 1,
        description="Steps without overflow after which the loss scale doubles",
    )
    max_consecutive_skips: int = Field(
        default=20,
        ge=1,
        le=2**31 - 1,
        description="Updates in a row that may be skipped for overflow before the run stops",
    )


class UnscaledPrecision(Section):
    mode: Literal["bf16", "fp32"]


PrecisionConfig = Annotated[
    ScaledPrecision | UnscaledPrecision,
    Field(discriminator="mode"),
    Kinds("mode", "fp16", "Autocast type; fp16 brings the GradScaler with it"),
]
