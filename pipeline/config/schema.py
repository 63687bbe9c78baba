"""Defines the typed, frozen model of a run: it and its sections are the only place with defaults."""

import math
import reprlib
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from pipeline.config.augment import AugmentConfig, PlainAugment
from pipeline.config.base import FilePath, Section, as_tuple
from pipeline.config.contradictions import check_together
from pipeline.config.data import CifarData, DataConfig, FileData
from pipeline.config.durations import Interval, RunLength
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.model import ModelConfig
from pipeline.config.optimizer import OptimizerConfig, SgdConfig
from pipeline.config.precision import PrecisionConfig, ScaledPrecision
from pipeline.config.schedule import ScheduleConfig, SmoothSchedule


def _as_class_weights(value: object) -> object:
    """Return the list of weights of a recipe as a tuple of floats, and anything that is no list unchanged."""
    if not isinstance(value, list | tuple):
        if value is None or value == "balanced":
            return value
        raise ValueError(f"{reprlib.repr(value)} is none of balanced, null, or a list such as [1.0, 2.5]")
    wrong = [item for item in value if isinstance(item, bool) or not isinstance(item, int | float)]
    if wrong or not all(0 <= item < math.inf for item in value) or not any(value):
        raise ValueError(
            f"{reprlib.repr(list(value))} is no list of weights: give a number for each class, none below 0, "
            "and not all of them 0"
        )
    return tuple(map(float, value))


ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_as_class_weights)]


class LossConfig(Section):
    name: Literal["cross_entropy", "bce"] = Field(
        default="cross_entropy",
        description="Loss in training; `bce`: the mean over classes of the binary cross-entropy (Wightman "
        "et al. 2021, arXiv:2110.00476). Evaluation records cross-entropy",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes"
    )
    class_weights: ClassWeights = Field(
        default=None,
        description="Factor of each class in the training loss, in label order; `balanced`: inverse to its "
        "number of training images, 1 on average over these. null: 1",
    )


class EmaConfig(Section):
    decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share that a moving average of the weights keeps at each step; it is evaluated and "
        "saved beside them. null: none",
    )
    every: Interval = Field(
        default="1st",
        description="Interval at which the average is updated with the weights; `ema.decay` is the share of "
        "one such update",
    )


class LookaheadConfig(Section):
    every: Interval | None = Field(
        default=None,
        description="Interval at which the weights go back to a slow average of themselves (Lookahead); "
        "null: never",
    )
    decay: float = Field(
        default=0.77, ge=0, lt=1, description="Share of the slow weights that stays, at the end of the run"
    )
    power: float = Field(
        default=3.0,
        ge=0,
        le=100,
        description="That share grows with this power of the fraction of the run; 0: it is constant",
    )


class CompileConfig(Section):
    mode: Literal["auto", "none", "default", "graph", "reduce-overhead", "max-autotune"] = Field(
        default="auto",
        description="torch.compile mode; `reduce-overhead` and `max-autotune` also capture the step in a "
        "CUDA graph; `graph` only captures it, on a GPU, and is `none` on the CPU; `auto`: "
        "`reduce-overhead` on a GPU, `none` on the CPU",
    )
    scope: Literal["network", "blocks"] = Field(
        default="network",
        description="`blocks` compiles each residual block by itself, those of equal shapes once, which is "
        "faster for deep networks; `network` compiles all as one",
    )
    backend: Literal["inductor", "aot_eager"] = Field(
        default="inductor", description="Compiler backend; `aot_eager` traces only, for tests"
    )
    drop_ended: bool = Field(
        default=False,
        description="When parameters reach `until` of `optimizer.groups`, compile and capture the step once "
        "more, without their gradients: shorter steps for another compilation; the weights are the same "
        "within rounding",
    )

    def mode_on(self, device: str) -> str:
        """Resolve `mode` on a type of device: `auto` is `reduce-overhead` on `cuda`; without it, `auto` and
        `graph` are `none`."""
        if self.mode in ("auto", "graph") and device != "cuda":
            return "none"
        return "reduce-overhead" if self.mode == "auto" else self.mode

    def captures_on(self, device: str) -> bool:
        """True if the step is captured in a CUDA graph on a type of device."""
        return self.mode_on(device) in ("graph", "reduce-overhead", "max-autotune")

    def compiles_on(self, device: str) -> bool:
        """True if torch.compile compiles the network on a type of device."""
        return self.mode_on(device) not in ("none", "graph")


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="`auto`: the GPU where there is one"
    )
    channels_last: bool = Field(
        default=True, description="Channels-last memory layout (NHWC), which tensor cores want"
    )
    deterministic: bool = Field(
        default=False, description="Deterministic algorithms only, at some cost of speed"
    )
    tf32: bool = Field(
        default=True, description="TF32 for float32 matrix products and convolutions on the GPU"
    )
    cudnn_benchmark: bool = Field(
        default=True, description="Let cuDNN time its algorithms and keep the fastest"
    )
    hang_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="Seconds without progress after which a run on several processes is ended and the one "
        "named that hangs",
    )


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class LogConfig(Section):
    dir: FilePath = Field(default="runs", description="Folder that the run folders are made in")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        pattern=r"^[\w.+-]+$",
        description="Name of the run: letters, digits and `_.+-`; default: the recipe's file name",
    )
    log_every: Interval = Field(
        default="50st",
        description="Interval between logged training metrics; a run that is shorter than five intervals of "
        "steps (`50st`) logs about twenty times",
    )
    eval_every: Interval = Field(
        default="1ep",
        description="Interval between evaluations; the last step is always evaluated. A run of 40 steps or "
        "more that is no longer than the interval is evaluated four times; a share of the run (`100%`) stays",
    )
    checkpoint_every: Interval = Field(
        default="1ep", description="Interval between checkpoints; the last step is always saved"
    )
    tensorboard: bool = Field(default=True, description="false: `tensorboard` in log.trackers does not count")
    trackers: Annotated[tuple[TrackerName, ...], BeforeValidator(as_tuple)] = Field(
        default=("tensorboard",),
        description="Where metrics, config, pictures and report go besides the run folder: `tensorboard`, "
        "`wandb`, `mlflow`, `trackio`, each of which but the first is an extra to install",
    )
    project: str = Field(
        default="quickres",
        min_length=1,
        max_length=100,
        pattern=r"^[\w.+-]+$",
        description="Project (wandb, trackio) or experiment (MLflow) of the run in the trackers: letters, "
        "digits and `_.+-`",
    )
    explain: bool = Field(
        default=True, description="End the run with Grad-CAM maps of misclassified test images"
    )
    report: bool = Field(
        default=True,
        description="End the run with `report.html`, and with the predictions that it is drawn from",
    )


class Config(Section):
    """One training run, complete."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of initialisation, order and augmentation")
    duration: RunLength = Field(
        default="20ep", description="Length of the run: epochs (`20ep`) or optimizer steps (`500st`)"
    )
    resume: FilePath = Field(
        default="none",
        description="`none`, `auto` (the newest unfinished run of the same config), a run folder, or one of "
        "its checkpoints (`RUN/checkpoints/step-N`)",
    )
    data: DataConfig = Field(default_factory=CifarData, description="Data set and loader")
    augment: AugmentConfig = Field(
        default_factory=PlainAugment, description="Augmentation of training images"
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="Network")
    loss: LossConfig = Field(default_factory=LossConfig, description="Loss")
    optimizer: OptimizerConfig = Field(default_factory=SgdConfig, description="Optimizer")
    schedule: ScheduleConfig = Field(default_factory=SmoothSchedule, description="Learning rate over the run")
    ema: EmaConfig = Field(default_factory=EmaConfig, description="Moving average of the weights")
    lookahead: LookaheadConfig = Field(
        default_factory=LookaheadConfig, description="Slow average that the weights go back to"
    )
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="What is evaluated")
    precision: PrecisionConfig = Field(default_factory=ScaledPrecision, description="Mixed precision")
    compile: CompileConfig = Field(default_factory=CompileConfig, description="torch.compile and CUDA graphs")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="Device and backend switches")
    log: LogConfig = Field(
        default_factory=LogConfig, description="Run folder, logging, evaluation and checkpoints"
    )

    _warnings: tuple[str, ...] = PrivateAttr(default=())

    def __eq__(self, other: object) -> bool:
        """Compare the values alone: the warnings tell of the recipe, not of the run."""
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    @model_validator(mode="after")
    def _check_together(self) -> "Config":
        check_together(self)
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """The sentences of `load_config` on keys of the recipe that have no effect."""
        return self._warnings

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels: CIFAR's own, or `data.image_size`."""
        return 32 if isinstance(self.data, CifarData) else self.data.image_size

    @property
    def probably_streamed(self) -> bool:
        """True if the images probably stay in their files: a guess by their size; only the files can tell."""
        return isinstance(self.data, FileData) and self.image_size > self.data.cache_below

    @property
    def other_image_sizes(self) -> dict[int, str]:
        """Further heights and widths of streamed images, in pixels, each with the key that sets it."""
        if not isinstance(self.data, FileData):
            return {}
        sizes = {size: "augment.progressive" for _, size in self.augment.progressive}
        if self.data.eval_image_size is not None:
            sizes[self.data.eval_image_size] = "data.eval_image_size"
        return {size: key for size, key in sizes.items() if size != self.image_size}
