"""Defines the section `optimizer`: one class for each optimizer."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from pipeline.config.base import Kinds, Section, as_tuple
from pipeline.config.durations import Duration, Interval

_Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[_Decay, _Decay], BeforeValidator(as_tuple)]


Coefficients = Annotated[tuple[float, float, float], BeforeValidator(as_tuple)]


class ParameterGroup(Section):
    """Settings of the parameters whose names fit a pattern.

    Attributes:
        match: pattern of names in which `*` stands for any text, such as `stem.*` or `*norm*.bias`.
        lr_ratio: factor of the learning rate that the parameters would have without this entry.
        weight_decay: in place of the optimizer's; None: the same.
        until: the schedule of these parameters has this length, and they are not trained after it; None: that
            of the run.
    """

    match: str = Field(min_length=1)
    lr_ratio: float = Field(default=1.0, ge=0, le=1e4)
    weight_decay: float | None = Field(default=None, ge=0, le=10)
    until: Duration | None = None


def _as_groups(value: object) -> object:
    """Return a list of mappings as a tuple of `ParameterGroup`, and anything else unchanged."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(item if isinstance(item, ParameterGroup) else _as_group(item) for item in value)


def _as_group(item: object) -> ParameterGroup:
    names = ", ".join(ParameterGroup.model_fields)
    if not isinstance(item, dict):
        raise ValueError(
            f"{item!r} is no entry; write {{match: PATTERN, lr_ratio: 0.5}}, with keys of {names}"
        )
    try:
        return ParameterGroup(**item)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise ValueError(f"the entry {item} is wrong ({reason}); the keys are {names}") from None


Groups = Annotated[tuple[ParameterGroup, ...], BeforeValidator(_as_groups)]


class _AnyOptimizer(Section):
    """The keys that all optimizers have."""

    lr: float = Field(default=0.1, gt=0, le=1e4, description="Peak learning rate, for a global batch")
    weight_decay: float = Field(
        default=5e-4,
        ge=0,
        le=10,
        description="L2 penalty on the weights (SGD), or decoupled decay (AdamW, Muon)",
    )
    decay_norm_and_bias: bool = Field(
        default=True, description="Put the penalty on batch-norm parameters and biases too"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="Largest global L2 norm of the gradient; null: no clipping"
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        le=2**16,
        description="Micro-batches that a process's share of the batch goes through the network in, one by "
        "one",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Factor of the learning rate from a layer to the one before it, from the head backwards, "
        "for fine-tuning; a block of the network is a layer",
    )
    groups: Groups = Field(
        default=(),
        description="Parameters with settings of their own: a list of {match: PATTERN, lr_ratio: FACTOR, "
        "weight_decay: VALUE, until: DURATION}, all but `match` optional; the first entry that fits a name "
        "counts",
    )


class _Momentum(_AnyOptimizer):
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Momentum: the fraction of the last update that the next one keeps",
    )
    nesterov: bool = Field(default=True, description="Nesterov's form of momentum")


class SgdConfig(_Momentum):
    name: Literal["sgd"] = "sgd"


class AdamwConfig(_AnyOptimizer):
    name: Literal["adamw"] = "adamw"
    betas: Betas = Field(
        default=(0.9, 0.999), description="Decay of the averages of the gradient and of its square"
    )


class MuonConfig(_Momentum):
    name: Literal["muon"] = "muon"
    sgd_lr_ratio: float = Field(
        default=1.0,
        gt=0,
        le=1e4,
        description="Learning rate of the parameters that are left to SGD, as a fraction of `optimizer.lr`",
    )
    sgd_weight_decay: float = Field(
        default=5e-4, ge=0, le=10, description="L2 penalty on the parameters that are left to SGD"
    )
    sgd_momentum: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Momentum of the parameters that are left to SGD; null: `optimizer.momentum`",
    )
    newton_schulz_steps: int = Field(
        default=5, ge=1, le=20, description="Iterations that orthogonalise an update"
    )
    newton_schulz_coefficients: Coefficients = Field(
        default=(3.4445, -4.7750, 2.0315),
        description="a, b, c of an iteration, x ← a x + b (x xᵀ) x + c (x xᵀ)² x",
    )
    renormalise_every: Interval | None = Field(
        default=None,
        description="Give each weight of Muon the norm sqrt(output channels) at this interval, before its "
        "update; null: never",
    )


OptimizerConfig = Annotated[
    SgdConfig | AdamwConfig | MuonConfig,
    Field(discriminator="name"),
    Kinds(
        "name",
        "sgd",
        "Optimizer; `muon` is for the weights of all layers but the first and the last, with SGD for "
        "these two, norms and biases",
    ),
]
