"""Compute the gradients by the input, weight and bias of a batch norm: what several backward passes share.

dz is the gradient by z, the output of the norm.
"""

# pyright: reportArgumentType=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.norm_tiles import load_channels
from kernels.tiles import load

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # by x, weight and bias


class NormConstants(NamedTuple):
    """The values of each channel that both gradient kernels read."""

    weight: torch.Tensor  # (C,) float32, as is bias
    bias: torch.Tensor
    statistics: (
        torch.Tensor
    )  # (2, C) float32: mean, 1 / standard deviation; (4, C) with a normalised residual


@triton.jit
def load_deviation(pointer, elements, mean, WHOLE_TILES: tl.constexpr, LAST_USE: tl.constexpr):
    """Return x - mean for the elements of a tile."""
    return load(pointer, elements, WHOLE_TILES, LAST_USE) - mean[None, :]


@triton.jit
def normalise(deviation, scale, bias):
    """Return the output of the norm for a tile of x - mean."""
    return tl.fma(deviation, scale[None, :], bias[None, :])


@triton.jit
def load_norm(norm, channel, num_channels):
    """Return mean, scale and bias of each channel: z = (x - mean) * scale + bias."""
    mean = load_channels(norm.statistics, channel, num_channels)
    inverse_std = load_channels(norm.statistics + num_channels, channel, num_channels)
    scale = load_channels(norm.weight, channel, num_channels) * inverse_std
    return mean, scale, load_channels(norm.bias, channel, num_channels)


@triton.jit
def dx_terms(products, dbias, weight_ptr, statistics_ptr, channel, num_rows, num_channels):
    """Return dweight, and scale, slope, constant and mean of dx = scale * dz + slope * (x - mean) + constant.

    dx is dz less its mean and less its projection on the normalised x (Ioffe and Szegedy 2015, section 3), in
    terms of x - mean.
    """
    mean = load_channels(statistics_ptr, channel, num_channels)
    inverse_std = load_channels(statistics_ptr + num_channels, channel, num_channels)
    dweight = products * inverse_std
    scale = load_channels(weight_ptr, channel, num_channels) * inverse_std
    return dweight, (scale, -scale * inverse_std * dweight / num_rows, -scale * dbias / num_rows, mean)


@triton.jit
def store_sums(dweight_ptr, dbias_ptr, dweight, dbias, channel, num_channels):
    """Write the gradients by weight and bias, in the first program of a column."""
    if tl.program_id(0) == 0:
        tl.store(dweight_ptr + channel, dweight, mask=channel < num_channels)
        tl.store(dbias_ptr + channel, dbias, mask=channel < num_channels)


@triton.jit
def input_gradient(dz, deviation, terms):
    """Return the gradient by the input of a batch norm."""
    scale, slope, constant, _ = terms
    return tl.fma(scale[None, :], dz, tl.fma(slope[None, :], deviation, constant[None, :]))


def empty_gradients(x: torch.Tensor, weight: torch.Tensor) -> Gradients:
    """Return tensors for the gradients by x, weight and bias."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, torch.empty_like(weight), torch.empty_like(weight)
