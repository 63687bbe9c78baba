"""The one typed, frozen model of a run; with `inputs.py`, the only place with defaults."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Section, as_tuple
from pipeline.config.data import AugmentConfig, DataConfig
from pipeline.config.durations import Duration, Interval, RunLength
from pipeline.config.model import NetworkName, check_model
from pipeline.config.rules import check_effect

Milestones = Annotated[tuple[Duration, ...], BeforeValidator(as_tuple)]
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], BeforeValidator(as_tuple)
]
Channels = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...],
    BeforeValidator(as_tuple),
    Field(min_length=1, max_length=4),
]


class ModelConfig(Section):
    name: NetworkName = Field(
        default="resnet18",
        description="Architecture: resnet18, 34, 50, 101, 152; for small images resnet20, 32, 44, 56, 110, plain20, 32, 44, 56 (without "
        "shortcuts), wrn16, 22, 28, 40 (wide) and davidnet (ResNet-9); torchvision/NAME or timm/NAME for one of theirs",
    )
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        default="auto",
        description="First layers: `cifar` 3x3 convolution, `imagenet` 7x7 with stride 2 and max-pool; `auto`: `imagenet` for resnet18 to "
        "resnet152 on images of more than 64 pixels",
    )
    shortcut: Literal["A", "B"] = Field(
        default="B",
        description="Shortcut where the shape changes: A zero-padded identity, B 1x1 projection (He et al. 2015)",
    )
    width: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Factor for the channels of the stages; in resnet50 to resnet152 for those of the 3x3 convolutions alone",
    )
    groups: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Groups of a bottleneck's 3x3 convolution; resnet50 with 32 and width 2 is ResNeXt-50 32x4d",
    )
    squeeze_excitation: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Reduction of a squeeze-and-excitation gate in each block (16 in the paper); 0: no gate",
    )
    preactivation: bool | None = Field(
        default=None,
        description="Batch norm and ReLU before each convolution, not after; null: in wrn16 to wrn40 only",
    )
    zero_init_residual: bool = Field(
        default=True,
        description="Start the last batch-norm scale of each block at 0 (with pre-activation its last convolution), so that blocks start "
        "as identities; not in plain networks, davidnet and those of other libraries",
    )
    fused_norm: bool = Field(
        default=False,
        description="Batch norm, residual and ReLU in training by our own Triton kernels, on a GPU; needs `runtime.channels_last`",
    )
    fused_stem: bool = Field(
        default=False,
        description="The first convolution, 3x3, in training by our own Triton kernels, on a GPU, and with `fused_norm` its norm and ReLU "
        "in the same; needs `runtime.channels_last`",
    )
    sync_batchnorm: bool = Field(
        default=False,
        description="Batch norm in training by the statistics of all processes' batches together; else each process has its own, and the "
        "running ones are averaged before evaluating and saving",
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="File of weights to start from, .safetensors or .pth, in our names or torchvision's; the head is kept only if the "
        "number of classes is the same; null: random weights",
    )


class LossConfig(Section):
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes"
    )


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw", "muon"] = Field(
        default="sgd",
        description="`muon`: for the weights of all layers but the first and the last; SGD for those two, norms and biases",
    )
    lr: float = Field(default=0.1, gt=0, le=1e4, description="Peak learning rate, for a global batch")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD and Muon")
    nesterov: bool = Field(default=True, description="Nesterov's form of momentum (SGD, Muon)")
    betas: Betas = Field(
        default=(0.9, 0.999), description="Decay of AdamW's averages of the gradient and of its square"
    )
    weight_decay: float = Field(
        default=5e-4,
        ge=0,
        le=10,
        description="L2 penalty on the weights (SGD), or decoupled decay (AdamW, Muon)",
    )
    decay_norm_and_bias: bool = Field(
        default=True, description="Put the penalty on batch-norm parameters and biases too"
    )
    sgd_lr_ratio: float = Field(
        default=1.0,
        gt=0,
        le=1e4,
        description="Learning rate of what `muon` leaves to SGD, as a share of `optimizer.lr`",
    )
    sgd_weight_decay: float = Field(
        default=5e-4, ge=0, le=10, description="L2 penalty on what `muon` leaves to SGD"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="Largest global L2 norm of the gradient; null: no clipping"
    )

    accumulate: int = Field(
        default=1,
        ge=1,
        le=2**16,
        description="Micro-batches that a process's share of the batch goes through the network in, one by one",
    )


class ScheduleConfig(Section):
    name: Literal["linear", "cosine", "one_cycle", "step"] = Field(
        default="linear",
        description="Shape: a linear warm-up, then `linear` falls in a line, `cosine` along half a cosine, `step` at the milestones; "
        "`one_cycle` rises and falls along half a cosine each",
    )
    warmup: Duration = Field(default="25%", description="Rise to the peak learning rate")
    start_fraction: float = Field(
        default=0.04,
        ge=0,
        le=1,
        description="Learning rate at step 0, as a share of the peak, where there is warm-up",
    )
    final_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Learning rate at the end, as a share of the peak (all but `step`)",
    )
    milestones: Milestones = Field(
        default=(), description="When `step` multiplies the learning rate by `schedule.gamma`"
    )
    gamma: float = Field(default=0.1, gt=0, lt=1, description="Factor at each milestone of `step`")


class EmaConfig(Section):
    decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share that a moving average of the weights keeps at each step; it is evaluated and saved beside them. null: none",
    )


class EvaluationConfig(Section):
    flip_tta: bool = Field(
        default=False,
        description="Evaluate the mean of the logits of each image and its mirror image too; recorded beside the figures of one view",
    )


class PrecisionConfig(Section):
    mode: Literal["fp16", "bf16", "fp32"] = Field(
        default="fp16", description="Autocast type; fp16 brings the GradScaler with it"
    )
    init_scale: float = Field(default=65536.0, gt=0, le=2.0**40, description="First loss scale (fp16)")
    growth_interval: int = Field(
        default=2000,
        ge=1,
        le=2**31 - 1,
        description="Steps without overflow after which the loss scale doubles (fp16)",
    )
    max_consecutive_skips: int = Field(
        default=20,
        ge=1,
        le=2**31 - 1,
        description="Updates in a row that may be skipped for overflow before the run stops (fp16)",
    )


class CompileConfig(Section):
    mode: Literal["auto", "none", "default", "reduce-overhead", "max-autotune"] = Field(
        default="auto",
        description="torch.compile mode; `reduce-overhead` and `max-autotune` also capture the step in a CUDA graph; "
        "`auto`: `reduce-overhead` on a GPU, `none` on the CPU",
    )
    backend: Literal["inductor", "aot_eager"] = Field(
        default="inductor", description="Compiler backend; `aot_eager` traces only, for tests"
    )


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
        description="Seconds without progress after which a run on several processes is ended and the one named that hangs",
    )


class LogConfig(Section):
    dir: str = Field(default="runs", min_length=1, description="Folder that the run folders are made in")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        pattern=r"^[\w.+-]+$",
        description="Name of the run: letters, digits and `_.+-`; default: the recipe's file name",
    )
    log_every: Interval = Field(default="50st", description="Interval between logged training metrics")
    eval_every: Interval = Field(
        default="1ep", description="Interval between evaluations; the last step is always evaluated"
    )
    checkpoint_every: Interval = Field(
        default="1ep", description="Interval between checkpoints; the last step is always saved"
    )
    tensorboard: bool = Field(default=True, description="Write TensorBoard event files")
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
    resume: str = Field(
        default="none",
        min_length=1,
        description="`none`, `auto` (the newest unfinished run of the same config), or a run folder",
    )
    data: DataConfig = Field(default_factory=DataConfig, description="Data set and loader")
    augment: AugmentConfig = Field(
        default_factory=AugmentConfig, description="Augmentation of training images"
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="Network")
    loss: LossConfig = Field(default_factory=LossConfig, description="Loss")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Optimizer")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate over the run")
    ema: EmaConfig = Field(default_factory=EmaConfig, description="Moving average of the weights")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="What is evaluated")
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig, description="Mixed precision")
    compile: CompileConfig = Field(default_factory=CompileConfig, description="torch.compile and CUDA graphs")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="Device and backend switches")
    log: LogConfig = Field(
        default_factory=LogConfig, description="Run folder, logging, evaluation and checkpoints"
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Config":
        """Pairs of keys that contradict each other. Each message names both and the remedy."""
        data, augment, schedule = self.data, self.augment, self.schedule
        if (data.mean is None) != (data.std is None):
            raise ValueError("data.mean and data.std: give both or neither")
        if data.mean is not None and data.std is not None:
            if len(data.mean) != len(data.std):
                raise ValueError("data.mean and data.std: give one number per channel in each")
            if min(data.std) <= 0:
                raise ValueError("data.std: must be above 0 in every channel")
        if isinstance(data.holdout, float) and data.holdout >= 1:
            raise ValueError(f"data.holdout: a fraction is below 1; for a count write {int(data.holdout)}")
        if self.image_size < augment.cutout:
            raise ValueError(
                f"augment.cutout: {augment.cutout} is larger than the image ({self.image_size}); use a smaller box"
            )
        if (data.train_list is None) != (data.test_list is None):
            raise ValueError("data.train_list and data.test_list: give both or neither")
        for key, (low, high) in (("crop_scale", augment.crop_scale), ("crop_ratio", augment.crop_ratio)):
            if low > high:
                raise ValueError(
                    f"augment.{key}: [{low:g}, {high:g}] goes from more to less; give the smaller number first"
                )
        if augment.progressive and augment.progressive[-1][1] != self.image_size:
            raise ValueError(
                f"augment.progressive: ends at {augment.progressive[-1][1]} pixels, data.image_size is {self.image_size}; make them equal"
            )
        if augment.progressive and augment.mix in ("cutmix", "ricap"):
            raise ValueError(
                f"augment.mix: {augment.mix} cuts images of one size, but augment.progressive changes it; use mixup, or no mix"
            )
        if schedule.name == "step" and not schedule.milestones:
            raise ValueError(
                "schedule.milestones: `schedule.name: step` needs at least one, such as [80ep, 120ep]"
            )
        if self.optimizer.nesterov and self.optimizer.momentum == 0 and self.optimizer.name != "adamw":
            raise ValueError(
                "optimizer.nesterov: needs optimizer.momentum above 0; set it, or optimizer.nesterov=false"
            )
        check_effect(self)
        check_model(self.model, self.image_size)
        for key in ("fused_norm", "fused_stem"):
            if getattr(self.model, key) and not self.runtime.channels_last:
                raise ValueError(
                    f"model.{key}: works on channels_last activations; set runtime.channels_last=true, or model.{key}=false"
                )
        if self.runtime.device == "cpu" and self.compile.mode in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compile.mode: {self.compile.mode} captures CUDA graphs, but runtime.device is cpu; use compile.mode=default"
            )
        if self.compile.backend != "inductor" and self.compile.mode == "max-autotune":
            raise ValueError("compile.mode: max-autotune needs compile.backend=inductor")
        if data.dataset == "synthetic" and data.loader != "synthetic" and data.num_samples < data.batch_size:
            raise ValueError(
                f"data.num_samples: {data.num_samples} is less than one batch; use data.batch_size={data.num_samples} or less"
            )
        return self

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels: CIFAR's own, or `data.image_size`."""
        return 32 if self.data.dataset in ("cifar10", "cifar100") else self.data.image_size

    @property
    def probably_streamed(self) -> bool:
        """Whether the images are likely to stay in their files: a guess by their size, which only the files can tell for certain."""
        return self.data.dataset == "folder" and self.image_size > self.data.cache_below

    @property
    def other_image_sizes(self) -> dict[int, str]:
        """Heights and widths in pixels that streamed images have besides, in training or evaluation, each with the key that says so."""
        sizes = {size: "augment.progressive" for _, size in self.augment.progressive}
        if self.data.eval_image_size is not None:
            sizes[self.data.eval_image_size] = "data.eval_image_size"
        return {size: key for size, key in sizes.items() if size != self.image_size}
