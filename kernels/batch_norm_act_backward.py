"""The backward kernels of `batch_norm_act.py` and their launches; `batch_norm_act_tiles.py` describes what they have in common."""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.batch_norm_act_tiles import add_partials, fold, load, locate, locate_mask, plan, store


@triton.jit
def _gradient_sums_kernel(
    dy_ptr,  # (M, C)
    second_dy_ptr,  # (M, C) or None
    x_ptr,  # (M, C)
    mask_ptr,  # (M, ceil(C / 8)) uint8 or None
    weight_ptr,  # (C,) float32, as is bias
    bias_ptr,
    statistics_ptr,  # (2, C) float32: mean, 1 / standard deviation
    dz_ptr,  # (M, C) or None
    partials_ptr,  # (2, P, C) float32: sum of dz, sum of dz * (x - mean)
    num_rows,
    num_channels,
    RECOMPUTE_MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    FOLD: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < num_channels
    mean = tl.load(statistics_ptr + channel, mask=in_channels, other=0.0)
    inverse_std = tl.load(statistics_ptr + num_channels + channel, mask=in_channels, other=0.0)
    scale = tl.load(weight_ptr + channel, mask=in_channels, other=0.0) * inverse_std
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0)

    sums = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    products = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        start, offset, exists = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        dz = load(dy_ptr, start, offset, exists, WHOLE_TILES, dz_ptr is not None)
        if second_dy_ptr is not None:
            dz += load(second_dy_ptr, start, offset, exists, WHOLE_TILES, True)
        deviation = load(x_ptr, start, offset, exists, WHOLE_TILES, False) - mean[None, :]
        if RECOMPUTE_MASK:
            dz = tl.where(tl.fma(deviation, scale[None, :], bias[None, :]) <= 0.0, 0.0, dz)
        if mask_ptr is not None:
            mask_start, mask_offset, bits_exist = locate_mask(tile, num_rows, num_channels, BLOCK_ROWS, BLOCK_CHANNELS)
            bits = load(mask_ptr, mask_start, mask_offset, bits_exist, WHOLE_TILES, True, tl.int32)
            bits = bits[:, :, None] >> tl.arange(0, 8)[None, None, :]
            dz = tl.where((tl.reshape(bits, (BLOCK_ROWS, BLOCK_CHANNELS)) & 1) != 0, dz, 0.0)
        if dz_ptr is not None:
            dz = dz.to(dz_ptr.dtype.element_ty).to(tl.float32)  # the sums are those of what the gradient kernel reads
            store(dz_ptr, start, offset, dz, exists, WHOLE_TILES)
        sums += fold(dz, FOLD)
        products += fold(dz * deviation, FOLD)

    partials = partials_ptr + program * num_channels + channel
    tl.store(partials, tl.sum(sums, axis=0), mask=in_channels)
    tl.store(partials + num_programs * num_channels, tl.sum(products, axis=0), mask=in_channels)


@triton.jit(do_not_specialize=["num_partials"])
def _gradient_kernel(
    dz_ptr,  # (M, C); dy where RECOMPUTE_MASK
    x_ptr,  # (M, C)
    weight_ptr,  # (C,) float32, as are bias, dweight and dbias
    bias_ptr,
    statistics_ptr,  # (2, C) float32: mean, 1 / standard deviation
    partials_ptr,  # (2, P, C) float32, of the gradient sums kernel
    dx_ptr,  # (M, C)
    dweight_ptr,
    dbias_ptr,
    num_rows,
    num_channels,
    num_partials,
    RECOMPUTE_MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < num_channels
    dbias, products = add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS, BLOCK_CHANNELS)
    mean = tl.load(statistics_ptr + channel, mask=in_channels, other=0.0)
    inverse_std = tl.load(statistics_ptr + num_channels + channel, mask=in_channels, other=0.0)
    dweight = products * inverse_std
    if tl.program_id(0) == 0:
        tl.store(dweight_ptr + channel, dweight, mask=in_channels)
        tl.store(dbias_ptr + channel, dbias, mask=in_channels)

    # dz less its mean and less its projection on the normalised x (Ioffe and Szegedy 2015, section 3), in terms of x - mean.
    scale = tl.load(weight_ptr + channel, mask=in_channels, other=0.0) * inverse_std
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0)
    slope = -scale * inverse_std * dweight / num_rows
    constant = -scale * dbias / num_rows
    for tile in tl.range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=NUM_STAGES):
        start, offset, exists = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        dz = load(dz_ptr, start, offset, exists, WHOLE_TILES, True)
        deviation = load(x_ptr, start, offset, exists, WHOLE_TILES, True) - mean[None, :]
        if RECOMPUTE_MASK:
            dz = tl.where(tl.fma(deviation, scale[None, :], bias[None, :]) <= 0.0, 0.0, dz)
        dx = tl.fma(scale[None, :], dz, tl.fma(slope[None, :], deviation, constant[None, :]))
        store(dx_ptr, start, offset, dx, exists, WHOLE_TILES)


def backward_outputs(x: torch.Tensor, weight: torch.Tensor, returns_dz: bool) -> tuple[torch.Tensor, ...]:
    like_x = torch.empty_like(x, memory_format=torch.channels_last)
    return like_x, torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(like_x) if returns_dz else x.new_empty(0)


def launch_backward(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    relu: bool,
    returns_dz: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the backward kernels; for the results see `backward_reference`. Activations and their gradients must be channels_last."""
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    dx, dweight, dbias, dz = backward_outputs(x, weight, returns_dz)
    recompute_mask = relu and mask is None

    launch = plan("gradient sums", x)
    partials = torch.empty((2, launch.grid[0], num_channels), dtype=torch.float32, device=x.device)
    written = dz if returns_dz else None
    _gradient_sums_kernel[launch.grid](
        gradient,
        second_gradient,
        x,
        mask,
        weight,
        bias,
        statistics,
        written,
        partials,
        num_rows,
        num_channels,
        recompute_mask,
        **launch.options,
    )

    launch = plan("gradient", x)
    _gradient_kernel[launch.grid](
        gradient if written is None else written,
        x,
        weight,
        bias,
        statistics,
        partials,
        dx,
        dweight,
        dbias,
        num_rows,
        num_channels,
        partials.shape[1],
        recompute_mask and written is None,
        **launch.options,
    )
    return dx, dweight, dbias, dz
