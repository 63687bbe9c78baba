"""Run the loss: one launch for few classes, otherwise two."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.tiles import FP_FUSION

_BLOCK = 1024  # elements that a program takes at a time
_FEW_CLASSES = 32  # up to here a thread walks over the classes of its own row
_MAX_ROWS_ALONE = 4096  # up to here one program takes all rows, which saves the launch that adds up many sums


@triton.jit
def _few_classes_loss_kernel(  # noqa: PLR0913
    logits_ptr,  # (B, K)
    targets_ptr,  # (B,) int64
    loss_ptr,  # scalar float32
    num_rows,
    smoothing,
    NUM_CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """Write the loss, in one program.

    The classes are unrolled: they are no axis of the block, so that each thread owns whole rows. 10 classes
    as an axis, padded to 16 and reduced across threads, take 3.7 times as many instructions (counted in the
    code for Hopper).
    """
    losses = tl.zeros((BLOCK_ROWS,), tl.float32)
    for block in range(NUM_BLOCKS):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        in_rows = row < num_rows
        target = tl.load(targets_ptr + row, mask=in_rows, other=0)
        valid = (target >= 0) & (target < NUM_CLASSES)
        logits = logits_ptr + row * NUM_CLASSES
        target_logit = tl.load(logits + target, mask=in_rows & valid, other=0.0).to(tl.float32)
        maximum = tl.load(logits, mask=in_rows, other=0.0).to(tl.float32)
        for k in tl.static_range(1, NUM_CLASSES):
            maximum = tl.maximum(maximum, tl.load(logits + k, mask=in_rows, other=0.0).to(tl.float32))
        total = tl.zeros((BLOCK_ROWS,), tl.float32)
        shifted_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
        for k in tl.static_range(NUM_CLASSES):
            shifted = tl.load(logits + k, mask=in_rows, other=0.0).to(tl.float32) - maximum
            total += tl.exp(shifted)
            shifted_sum += shifted
        loss = tl.log(total) - (1.0 - smoothing) * (target_logit - maximum)
        loss -= smoothing / NUM_CLASSES * shifted_sum
        losses += tl.where(in_rows, tl.where(valid, loss, float("nan")), 0.0)
    tl.store(loss_ptr, tl.sum(losses, axis=0) / num_rows)


@triton.jit
def softmax(
    logits_ptr, targets_ptr, row, num_rows, smoothing, NUM_CLASSES: tl.constexpr, BLOCK_CLASSES: tl.constexpr
):
    """Return for the rows `row`: shifted logits, exponentials, sum of exponentials, q, and a mask.

    Logits are shifted by the maximum of their row. q is the smoothed target. The mask is true for elements
    that exist.
    """
    column = tl.arange(0, BLOCK_CLASSES)[None, :]
    in_rows = row < num_rows
    exists = in_rows[:, None] & (column < NUM_CLASSES)
    offset = row.to(tl.int64)[:, None] * NUM_CLASSES + column
    logits = tl.load(logits_ptr + offset, mask=exists, other=0.0).to(tl.float32)
    target = tl.load(targets_ptr + row, mask=in_rows, other=0)[:, None]

    maximum = tl.max(tl.where(exists, logits, float("-inf")), axis=1)
    shifted = tl.where(exists, logits - maximum[:, None], 0.0)
    exponential = tl.where(exists, tl.exp(shifted), 0.0)
    total = tl.where(in_rows, tl.sum(exponential, axis=1), 1.0)

    uniform = smoothing / NUM_CLASSES
    q = tl.where(column == target, 1.0 - smoothing + uniform, uniform)
    # A target out of range equals no column. Without NaN its row would quietly train towards the uniform
    # distribution.
    q = tl.where((target >= 0) & (target < NUM_CLASSES), q, float("nan"))
    return shifted, exponential, total, q, exists


@triton.jit
def _loss_kernel(  # noqa: PLR0913
    logits_ptr,  # (B, K)
    targets_ptr,  # (B,) int64
    sums_ptr,  # (number of programs,) float32: each program's part of the mean
    num_rows,
    smoothing,
    NUM_CLASSES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    shifted, _, total, q, _ = softmax(
        logits_ptr, targets_ptr, row, num_rows, smoothing, NUM_CLASSES, BLOCK_CLASSES
    )
    losses = tl.log(total) - tl.sum(q * shifted, axis=1)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(losses, axis=0) / num_rows)


@triton.jit
def _loss_sum_kernel(sums_ptr, loss_ptr, num_sums, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(NUM_BLOCKS):
        index = block * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + index, mask=index < num_sums, other=0.0)
    tl.store(loss_ptr, tl.sum(total, axis=0))


def launch_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the loss, a float32 scalar. The order of summation is fixed."""
    num_rows, num_classes = logits.shape
    logits, targets = logits.contiguous(), targets.contiguous()
    loss = torch.empty((), dtype=torch.float32, device=logits.device)
    if num_classes <= _FEW_CLASSES and num_rows <= _MAX_ROWS_ALONE:
        block_rows = min(max(triton.next_power_of_2(num_rows), 32), _BLOCK)
        sizes = num_classes, block_rows, triton.cdiv(num_rows, block_rows)
        _few_classes_loss_kernel[(1,)](
            logits, targets, loss, num_rows, smoothing, *sizes, num_warps=block_rows // 32, **FP_FUSION
        )
        return loss
    grid, block_classes, block_rows, options = tiles(num_rows, num_classes)
    sums = torch.empty(grid, dtype=torch.float32, device=logits.device)
    _loss_kernel[grid](
        logits, targets, sums, num_rows, smoothing, num_classes, block_classes, block_rows, **options
    )
    _loss_sum_kernel[(1,)](sums, loss, len(sums), _BLOCK, triton.cdiv(len(sums), _BLOCK), **FP_FUSION)
    return loss


def tiles(num_rows: int, num_classes: int) -> tuple[tuple[int], int, int, dict[str, Any]]:
    """Return the grid, the classes (padded) and the rows of a program, and the launch options."""
    block_classes = triton.next_power_of_2(num_classes)
    block_rows = max(1, _BLOCK // block_classes)
    options = {"num_warps": min(32, max(4, block_classes // 256)), **FP_FUSION}
    return (triton.cdiv(num_rows, block_rows),), block_classes, block_rows, options
