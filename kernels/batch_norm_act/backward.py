"""The backward kernels of `batch_norm_act.py` and their launches; `batch_norm_act_tiles.py` describes what they have in common."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.batch_norm_act.tiles import add_partials, fold, load, locate, locate_mask, plan, store

# by x, weight and bias, and dz
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# by x, weight and bias, and by the residual and its weight and bias
DualGradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def _norm_gradient_sums_kernel(
    dy_ptr,  # (M, C)
    second_dy_ptr,  # (M, C) or None
    x_ptr,  # (M, C)
    mask_ptr,  # (M, ceil(C / 8)) uint8 or None
    weight_ptr,  # (C,) float32, as is bias
    bias_ptr,
    statistics_ptr,  # (2, C) float32: mean, 1 / standard deviation; (4, C) with a normalised residual
    residual_ptr,  # (M, C) where the residual is normalised too, otherwise None
    dz_ptr,  # (M, C) or None
    partials_ptr,  # (2 or 3, P, C) float32: sum of dz, sum of dz * (x - mean), and likewise for the residual
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

    if residual_ptr is not None:
        residual_mean = tl.load(statistics_ptr + 2 * num_channels + channel, mask=in_channels, other=0.0)
        residual_products = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)

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
            mask_start, mask_offset, bits_exist = locate_mask(
                tile, num_rows, num_channels, BLOCK_ROWS, BLOCK_CHANNELS
            )
            bits = load(mask_ptr, mask_start, mask_offset, bits_exist, WHOLE_TILES, True, tl.int32)
            bits = bits[:, :, None] >> tl.arange(0, 8)[None, None, :]
            dz = tl.where((tl.reshape(bits, (BLOCK_ROWS, BLOCK_CHANNELS)) & 1) != 0, dz, 0.0)
        if dz_ptr is not None:
            dz = dz.to(dz_ptr.dtype.element_ty).to(
                tl.float32
            )  # the sums are those of what the gradient kernel reads
            store(dz_ptr, start, offset, dz, exists, WHOLE_TILES)
        sums += fold(dz, FOLD)
        products += fold(dz * deviation, FOLD)
        if residual_ptr is not None:
            deviation = load(residual_ptr, start, offset, exists, WHOLE_TILES, False) - residual_mean[None, :]
            residual_products += fold(dz * deviation, FOLD)

    partials = partials_ptr + program * num_channels + channel
    tl.store(partials, tl.sum(sums, axis=0), mask=in_channels)
    tl.store(partials + num_programs * num_channels, tl.sum(products, axis=0), mask=in_channels)
    if residual_ptr is not None:
        tl.store(
            partials + 2 * num_programs * num_channels, tl.sum(residual_products, axis=0), mask=in_channels
        )


@triton.jit
def _coefficients(products, dbias, weight_ptr, statistics_ptr, num_rows, num_channels, channel):
    """Return dweight, and what makes dx = scale * dz + slope * (x - mean) + constant; the mean is the last.

    That is dz less its mean and less its projection on the normalised x (Ioffe and Szegedy 2015, section 3), in terms of x - mean.
    """
    in_channels = channel < num_channels
    mean = tl.load(statistics_ptr + channel, mask=in_channels, other=0.0)
    inverse_std = tl.load(statistics_ptr + num_channels + channel, mask=in_channels, other=0.0)
    dweight = products * inverse_std
    scale = tl.load(weight_ptr + channel, mask=in_channels, other=0.0) * inverse_std
    return dweight, scale, -scale * inverse_std * dweight / num_rows, -scale * dbias / num_rows, mean


@triton.jit(do_not_specialize=["num_partials"])
def _norm_gradient_kernel(
    dz_ptr,  # (M, C); dy where RECOMPUTE_MASK
    x_ptr,  # (M, C)
    weight_ptr,  # (C,) float32, as are bias, dweight and dbias
    bias_ptr,
    statistics_ptr,  # (2 or 4, C) float32, as for the gradient sums kernel
    partials_ptr,  # (2 or 3, P, C) float32, of the gradient sums kernel
    dx_ptr,  # (M, C)
    dweight_ptr,
    dbias_ptr,
    residual_ptr,  # these five: as those of x where the residual is normalised too, otherwise None
    residual_weight_ptr,
    dresidual_ptr,
    residual_dweight_ptr,
    residual_dbias_ptr,
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
    dbias, products = add_partials(
        partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS, BLOCK_CHANNELS
    )
    dweight, scale, slope, constant, mean = _coefficients(
        products, dbias, weight_ptr, statistics_ptr, num_rows, num_channels, channel
    )
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0)
    if tl.program_id(0) == 0:
        tl.store(dweight_ptr + channel, dweight, mask=in_channels)
        tl.store(dbias_ptr + channel, dbias, mask=in_channels)
    if residual_ptr is not None:
        pair = partials_ptr + num_partials * num_channels  # of which the second is new
        _, residual_products = add_partials(
            pair, num_partials, num_channels, channel, BLOCK_PARTIALS, BLOCK_CHANNELS
        )
        residual_dweight, residual_scale, residual_slope, residual_constant, residual_mean = _coefficients(
            residual_products,
            dbias,
            residual_weight_ptr,
            statistics_ptr + 2 * num_channels,
            num_rows,
            num_channels,
            channel,
        )
        if tl.program_id(0) == 0:
            tl.store(residual_dweight_ptr + channel, residual_dweight, mask=in_channels)
            tl.store(residual_dbias_ptr + channel, dbias, mask=in_channels)

    for tile in tl.range(
        tl.program_id(0), tl.cdiv(num_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=NUM_STAGES
    ):
        start, offset, exists = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        dz = load(dz_ptr, start, offset, exists, WHOLE_TILES, True)
        deviation = load(x_ptr, start, offset, exists, WHOLE_TILES, True) - mean[None, :]
        if RECOMPUTE_MASK:
            dz = tl.where(tl.fma(deviation, scale[None, :], bias[None, :]) <= 0.0, 0.0, dz)
        dx = tl.fma(scale[None, :], dz, tl.fma(slope[None, :], deviation, constant[None, :]))
        store(dx_ptr, start, offset, dx, exists, WHOLE_TILES)
        if residual_ptr is not None:
            deviation = load(residual_ptr, start, offset, exists, WHOLE_TILES, True) - residual_mean[None, :]
            dresidual = tl.fma(
                residual_scale[None, :],
                dz,
                tl.fma(residual_slope[None, :], deviation, residual_constant[None, :]),
            )
            store(dresidual_ptr, start, offset, dresidual, exists, WHOLE_TILES)


def backward_outputs(x: torch.Tensor, weight: torch.Tensor, returns_dz: bool) -> Gradients:
    like_x = torch.empty_like(x, memory_format=torch.channels_last)
    return (
        like_x,
        torch.empty_like(weight),
        torch.empty_like(weight),
        torch.empty_like(like_x) if returns_dz else x.new_empty(0),
    )


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
) -> Gradients:
    """Run the backward kernels; for the results see `backward_reference`. Activations and their gradients must be channels_last."""
    outputs = backward_outputs(x, weight, returns_dz)
    dz = outputs[-1] if returns_dz else None
    _launch(gradient, second_gradient, x, mask, weight, bias, statistics, dz, relu, outputs[:3])
    return outputs


def dual_backward_outputs(x: torch.Tensor, weight: torch.Tensor) -> DualGradients:
    dx, dresidual = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
    dweight, dbias, residual_dweight, residual_dbias = (torch.empty_like(weight) for _ in range(4))
    return dx, dweight, dbias, dresidual, residual_dweight, residual_dbias


def launch_dual_backward(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    residual: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual_weight: torch.Tensor,
    statistics: torch.Tensor,
) -> DualGradients:
    """Run the backward kernels where the residual is normalised too; the results are those of `dual_backward_outputs`."""
    outputs = dual_backward_outputs(x, weight)
    dz = torch.empty_like(x)
    dual = (residual, residual_weight, *outputs[3:])
    _launch(gradient, second_gradient, x, mask, weight, bias, statistics, dz, True, outputs[:3], dual)
    return outputs


def _launch(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    dz: torch.Tensor | None,
    relu: bool,
    outputs: tuple[torch.Tensor, ...],
    dual: tuple[torch.Tensor | None, ...] = (None,) * 5,
) -> None:
    """`outputs` are dx, dweight and dbias; `dual` is a normalised residual, its weight, and the same outputs for these."""
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    recompute_mask = relu and mask is None
    residual = dual[0]
    prefix, num_sums = ("", 2) if residual is None else ("dual ", 3)

    launch = plan(f"{prefix}gradient sums", x)
    partials = torch.empty((num_sums, launch.grid[0], num_channels), dtype=torch.float32, device=x.device)
    _norm_gradient_sums_kernel[launch.grid](
        gradient,
        second_gradient,
        x,
        mask,
        weight,
        bias,
        statistics,
        residual,
        dz,
        partials,
        num_rows,
        num_channels,
        recompute_mask,
        **launch.options,
    )

    launch = plan(f"{prefix}gradient", x)
    _norm_gradient_kernel[launch.grid](
        gradient if dz is None else dz,
        x,
        weight,
        bias,
        statistics,
        partials,
        *outputs,
        *dual,
        num_rows,
        num_channels,
        partials.shape[1],
        recompute_mask and dz is None,
        **launch.options,
    )
