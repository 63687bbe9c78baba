"""Run the backward pass: `kernels/norm_tiles.py` lists the launches and describes the tiles.

dz is the gradient by z, the sum under the activation.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.activations import pass_gradient
from kernels.arguments import SMOOTH_ACTIVATIONS
from kernels.norm_gradient import (
    Gradients,
    NormConstants,
    dx_terms,
    empty_gradients,
    input_gradient,
    load_deviation,
    load_norm,
    normalise,
    store_sums,
)
from kernels.norm_tiles import add_partials, fold, load_channels, locate_mask, plan, store_partials
from kernels.tiles import load, locate, store


class Inputs(NamedTuple):
    """The tensors that the gradient sums kernel reads."""

    dy: torch.Tensor  # (M, C)
    second_dy: torch.Tensor | None  # (M, C)
    x: torch.Tensor  # (M, C)
    mask: torch.Tensor | None  # (M, ceil(C / 8)) uint8
    residual: torch.Tensor | None = None  # (M, C), if z is computed again and has a residual


class ResidualTensors(NamedTuple):
    """The tensors of a residual that is normalised too: the kernel reads the first two, writes the others."""

    residual: torch.Tensor  # (M, C)
    weight: torch.Tensor  # (C,) float32, as are dweight and dbias
    dresidual: torch.Tensor  # (M, C)
    dweight: torch.Tensor
    dbias: torch.Tensor


@triton.jit
def _load_dz(
    inputs,
    elements,
    affine,
    ACTIVATION: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    LAST_USE: tl.constexpr,
):
    """Return dz and x - mean for the elements of a tile. A mask from forward is not yet applied to dz.

    ACTIVATION is "none" if there is such a mask. LAST_USE is that of dy.
    """
    mean, scale, bias = affine
    dz = load(inputs.dy, elements, WHOLE_TILES, LAST_USE)
    if inputs.second_dy is not None:
        dz += load(inputs.second_dy, elements, WHOLE_TILES, True)
    deviation = load_deviation(inputs.x, elements, mean, WHOLE_TILES, False)
    z = normalise(deviation, scale, bias)
    if inputs.residual is not None:
        z += load(inputs.residual, elements, WHOLE_TILES, True)
    return pass_gradient(dz, z, ACTIVATION), deviation


@triton.jit
def _apply_mask(dz, mask_ptr, tile, num_rows, num_channels, WHOLE_TILES: tl.constexpr):
    """Return dz. With a mask dz becomes 0 where the bit of the mask is 0."""
    if mask_ptr is not None:
        elements = locate_mask(tile, num_rows, num_channels, dz.shape[0], dz.shape[1])
        bits = load(mask_ptr, elements, WHOLE_TILES, True, tl.int32)
        bits = bits[:, :, None] >> tl.arange(0, 8)[None, None, :]
        dz = tl.where((tl.reshape(bits, (dz.shape[0], dz.shape[1])) & 1) != 0, dz, 0.0)
    return dz


@triton.jit
def _store_dz(dz_ptr, elements, dz, WHOLE_TILES: tl.constexpr):
    """Return dz. With a pointer dz is written, and rounded before it is returned.

    The sums must be those of the dz that the gradient kernel reads.
    """
    if dz_ptr is not None:
        dz = dz.to(dz_ptr.dtype.element_ty).to(tl.float32)
        store(dz_ptr, elements, dz, WHOLE_TILES)
    return dz


@triton.jit
def _norm_gradient_sums_kernel(  # noqa: PLR0913
    inputs,  # Inputs
    norm,  # NormConstants
    residual_ptr,  # (M, C) if the residual is normalised too, otherwise None
    dz_ptr,  # (M, C) or None
    partials_ptr,  # (2 or 3, P, C) float32: sum of dz, sum of dz * (x - mean), and likewise for the residual
    num_rows,
    num_channels,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    FOLD: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    affine = load_norm(norm, channel, num_channels)
    if residual_ptr is not None:
        residual_mean = load_channels(norm.statistics + 2 * num_channels, channel, num_channels)
    zeros = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    residual_sums, sums, products = zeros, zeros, zeros
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        elements = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        dz, deviation = _load_dz(inputs, elements, affine, ACTIVATION, WHOLE_TILES, dz_ptr is not None)
        dz = _apply_mask(dz, inputs.mask, tile, num_rows, num_channels, WHOLE_TILES)
        dz = _store_dz(dz_ptr, elements, dz, WHOLE_TILES)
        sums += fold(dz, FOLD)
        products += fold(dz * deviation, FOLD)
        if residual_ptr is not None:
            deviation = load_deviation(residual_ptr, elements, residual_mean, WHOLE_TILES, False)
            residual_sums += fold(dz * deviation, FOLD)
    store_partials(partials_ptr, sums, products, channel, num_channels)
    if residual_ptr is not None:
        partials = partials_ptr + (2 * num_programs + program) * num_channels + channel
        tl.store(partials, tl.sum(residual_sums, axis=0), mask=channel < num_channels)


@triton.jit(do_not_specialize=["num_partials"])
def _norm_gradient_kernel(  # noqa: PLR0913
    dz_ptr,  # (M, C); dy unless ACTIVATION is "none"
    x_ptr,  # (M, C)
    norm,  # NormConstants
    partials_ptr,  # (2 or 3, P, C) float32, of the gradient sums kernel
    gradients,  # by x, (M, C), and by weight and bias, (C,) float32
    residual,  # ResidualTensors if the residual is normalised too, otherwise None
    num_rows,
    num_channels,
    num_partials,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    dbias, sums = add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS)
    dweight, terms = dx_terms(sums, dbias, norm.weight, norm.statistics, channel, num_rows, num_channels)
    bias = load_channels(norm.bias, channel, num_channels)
    store_sums(gradients[1], gradients[2], dweight, dbias, channel, num_channels)
    if residual is not None:
        pair = partials_ptr + num_partials * num_channels  # of which the second is new
        _, sums = add_partials(pair, num_partials, num_channels, channel, BLOCK_PARTIALS)
        statistics_ptr = norm.statistics + 2 * num_channels
        dweight, residual_terms = dx_terms(
            sums, dbias, residual.weight, statistics_ptr, channel, num_rows, num_channels
        )
        store_sums(residual.dweight, residual.dbias, dweight, dbias, channel, num_channels)
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        elements = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        dz = load(dz_ptr, elements, WHOLE_TILES, True)
        deviation = load_deviation(x_ptr, elements, terms[3], WHOLE_TILES, True)
        dz = pass_gradient(dz, normalise(deviation, terms[0], bias), ACTIVATION)
        store(gradients[0], elements, input_gradient(dz, deviation, terms), WHOLE_TILES)
        if residual is not None:
            deviation = load_deviation(residual.residual, elements, residual_terms[3], WHOLE_TILES, True)
            store(residual.dresidual, elements, input_gradient(dz, deviation, residual_terms), WHOLE_TILES)


def backward_outputs(
    x: torch.Tensor, weight: torch.Tensor, returns_dz: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors for the results of `launch_backward`."""
    gradients = empty_gradients(x, weight)
    return *gradients, torch.empty_like(gradients[0]) if returns_dz else x.new_empty(0)


def launch_backward(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mask: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    activation: str,
    returns_dz: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the backward kernels and return what `backward_reference` returns.

    Activations and gradients must be channels_last.
    """
    outputs = backward_outputs(x, weight, returns_dz)
    inputs = Inputs(gradient, second_gradient, x, mask, residual)
    norm = NormConstants(weight, bias, statistics)
    launch_gradients(inputs, norm, outputs[3] if returns_dz else None, activation, outputs[:3])
    return outputs


def launch_sums(
    inputs: Inputs,
    norm: NormConstants,
    dz: torch.Tensor | None,
    activation: str,
    normalised_residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write dz unless it is None, and return the sums of each program.

    They are (2, P, C), or (3, P, C) with a residual that is normalised too.
    """
    x = inputs.x
    num_channels = x.shape[1]
    kind = (
        "smooth " if activation in SMOOTH_ACTIVATIONS else "dual " if normalised_residual is not None else ""
    )
    launch = plan(f"{kind}gradient sums", x)
    num_sums = 2 if normalised_residual is None else 3
    partials = torch.empty((num_sums, launch.grid[0], num_channels), dtype=torch.float32, device=x.device)
    recomputed = activation if inputs.mask is None else "none"
    tensors = inputs, norm, normalised_residual, dz, partials
    _norm_gradient_sums_kernel[launch.grid](
        *tensors, x.numel() // num_channels, num_channels, recomputed, **launch.options
    )
    return partials


def launch_gradients(
    inputs: Inputs,
    norm: NormConstants,
    dz: torch.Tensor | None,
    activation: str,
    gradients: Gradients,
    residual: ResidualTensors | None = None,
) -> None:
    """Write the gradients, dz unless it is None, and the gradients of a residual that is normalised too."""
    x = inputs.x
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    partials = launch_sums(inputs, norm, dz, activation, None if residual is None else residual.residual)
    launch = plan("gradient" if residual is None else "dual gradient", x)
    recomputed = activation if dz is None and inputs.mask is None else "none"
    dz = inputs.dy if dz is None else dz
    sizes = num_rows, num_channels, partials.shape[1]
    _norm_gradient_kernel[launch.grid](
        dz, x, norm, partials, gradients, residual, *sizes, recomputed, **launch.options
    )
