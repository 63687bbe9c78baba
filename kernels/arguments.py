"""Check and prepare arguments that several ops take."""

from typing import Literal, NamedTuple, get_args

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Activation = Literal["none", "relu", "silu", "gelu"]  # see `kernels/activations.py`
# Their slopes have more values than 0 and 1, so that a bit for each element does not hold them.
SMOOTH_ACTIVATIONS: tuple[str, ...] = ("silu", "gelu")


class Norm(NamedTuple):
    """The tensors of a batch norm layer, each (C,) contiguous float32.

    In training the running statistics become (1 - momentum) * running + momentum * those of the batch. The
    variance that is added to `running_var` is the unbiased one.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor


def check_activation(activation: str) -> None:
    """Raise a ValueError if there is no such activation."""
    if activation not in get_args(Activation):
        raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, not {activation!r}")


def check_norm(norm: Norm, num_channels: int, name: str = "norm") -> None:
    """Raise a ValueError if a tensor of the norm has another shape, dtype or memory layout."""
    for field, vector in zip(Norm._fields, norm, strict=True):
        if vector.shape != (num_channels,) or vector.dtype is not torch.float32 or not vector.is_contiguous():
            raise ValueError(
                f"{name}.{field} must be contiguous float32 ({num_channels},), "
                f"not {vector.dtype} {tuple(vector.shape)}"
            )


def prepare_gradients(
    gradient: torch.Tensor | None, second_gradient: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of the two uses of y in channels_last. If only one exists, it comes first."""
    if gradient is None:
        gradient, second_gradient = second_gradient, None
    if gradient is not None:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
    if second_gradient is not None:
        second_gradient = second_gradient.contiguous(memory_format=torch.channels_last)
    return gradient, second_gradient
