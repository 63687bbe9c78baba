"""Defines the section `optimizer`: one class for each optimizer."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Kinds, Section, as_tuple

_Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[_Decay, _Decay], BeforeValidator(as_tuple)]


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
