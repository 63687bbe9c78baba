"""Mean cross-entropy with label smoothing, forward and backward, as an operator that `torch.compile` keeps in one graph.

Shapes: B rows (samples), K classes.

The loss is that of `torch.nn.functional.cross_entropy(..., label_smoothing=s, reduction="mean")`: with p = softmax(logits) and
q = (1 - s) * onehot(target) + s / K, the mean over the rows of -sum_k q_k log p_k (Szegedy et al. 2016, arXiv:1512.00567,
section 7). Its gradient by the logits is (p - q) / B. Unlike there, half-precision logits are read as they are (arithmetic in
float32, no float32 copy), and no target is ignored.

The backward pass recomputes the softmax from the logits. Half-precision gradients made in the forward pass would be as many
bytes to read back, and would lose small values to underflow before the loss scale reaches them.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.label_smoothing_cross_entropy.reference import (
    label_smoothing_cross_entropy_gradient_reference,
    label_smoothing_cross_entropy_reference,
)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_CLASSES = 32768  # a row must fit in the registers of one program
_BLOCK = 1024  # elements that a program takes at a time
_FEW_CLASSES = 32  # up to here a thread walks over the classes of its own row
_MAX_ROWS_ALONE = (
    4096  # up to here one program takes all rows, which saves the launch that adds up the sums of many
)


@triton.jit
def _few_classes_loss_kernel(
    logits_ptr,  # (B, K)
    targets_ptr,  # (B,) int64
    loss_ptr,  # scalar float32
    num_rows,
    smoothing,
    NUM_CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    # One program. The classes are unrolled instead of being an axis of the block, so that each thread owns whole rows: 10 classes as an
    # axis, padded to 16 and reduced across threads, take 3.7 times the instructions (counted in the code for Hopper).
    losses = tl.zeros((BLOCK_ROWS,), tl.float32)
    for block in range(NUM_BLOCKS):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        in_rows = row < num_rows
        target = tl.load(targets_ptr + row, mask=in_rows, other=0)
        valid = (target >= 0) & (target < NUM_CLASSES)
        logits = logits_ptr + row * NUM_CLASSES
        wanted = tl.load(logits + target, mask=in_rows & valid, other=0.0).to(tl.float32)
        maximum = tl.load(logits, mask=in_rows, other=0.0).to(tl.float32)
        for k in tl.static_range(1, NUM_CLASSES):
            maximum = tl.maximum(maximum, tl.load(logits + k, mask=in_rows, other=0.0).to(tl.float32))
        total = tl.zeros((BLOCK_ROWS,), tl.float32)
        shifted_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
        for k in tl.static_range(NUM_CLASSES):
            shifted = tl.load(logits + k, mask=in_rows, other=0.0).to(tl.float32) - maximum
            total += tl.exp(shifted)
            shifted_sum += shifted
        loss = tl.log(total) - (1.0 - smoothing) * (wanted - maximum) - smoothing / NUM_CLASSES * shifted_sum
        losses += tl.where(in_rows, tl.where(valid, loss, float("nan")), 0.0)
    tl.store(loss_ptr, tl.sum(losses, axis=0) / num_rows)


@triton.jit
def _softmax(
    logits_ptr, targets_ptr, row, num_rows, smoothing, NUM_CLASSES: tl.constexpr, BLOCK_CLASSES: tl.constexpr
):
    """Return for the rows `row`: logits less their maximum, the exponentials of these, the row sums, q, and which elements exist."""
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
    wanted = tl.where(column == target, 1.0 - smoothing + uniform, uniform)
    # A target out of range equals no column. Without this, its row would quietly train towards the uniform distribution.
    wanted = tl.where((target >= 0) & (target < NUM_CLASSES), wanted, float("nan"))
    return shifted, exponential, total, wanted, exists


@triton.jit
def _loss_kernel(
    logits_ptr,  # (B, K)
    targets_ptr,  # (B,) int64
    sums_ptr,  # (number of programs,) float32: each program's share of the mean
    num_rows,
    smoothing,
    NUM_CLASSES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    shifted, _, total, wanted, _ = _softmax(
        logits_ptr, targets_ptr, row, num_rows, smoothing, NUM_CLASSES, BLOCK_CLASSES
    )
    losses = tl.log(total) - tl.sum(wanted * shifted, axis=1)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(losses, axis=0) / num_rows)


@triton.jit
def _loss_sum_kernel(sums_ptr, loss_ptr, num_sums, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(NUM_BLOCKS):
        index = block * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + index, mask=index < num_sums, other=0.0)
    tl.store(loss_ptr, tl.sum(total, axis=0))


@triton.jit
def _loss_gradient_kernel(
    gradient_ptr,  # scalar: gradient by the loss
    logits_ptr,  # (B, K)
    targets_ptr,  # (B,) int64
    out_ptr,  # (B, K)
    num_rows,
    smoothing,
    NUM_CLASSES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    _, exponential, total, wanted, exists = _softmax(
        logits_ptr, targets_ptr, row, num_rows, smoothing, NUM_CLASSES, BLOCK_CLASSES
    )
    scale = tl.load(gradient_ptr).to(tl.float32) / num_rows
    result = scale * (exponential * (1.0 / total)[:, None] - wanted)
    offset = row.to(tl.int64)[:, None] * NUM_CLASSES + tl.arange(0, BLOCK_CLASSES)[None, :]
    tl.store(out_ptr + offset, result.to(out_ptr.dtype.element_ty), mask=exists)


def launch_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Run the forward kernel: one launch for few classes, otherwise two. The order of summation is fixed."""
    num_rows, num_classes = logits.shape
    logits, targets = logits.contiguous(), targets.contiguous()
    loss = torch.empty((), dtype=torch.float32, device=logits.device)
    if num_classes <= _FEW_CLASSES and num_rows <= _MAX_ROWS_ALONE:
        block_rows = min(max(triton.next_power_of_2(num_rows), 32), _BLOCK)
        num_blocks = triton.cdiv(num_rows, block_rows)
        num_warps = block_rows // 32
        _few_classes_loss_kernel[(1,)](
            logits,
            targets,
            loss,
            num_rows,
            smoothing,
            num_classes,
            block_rows,
            num_blocks,
            num_warps=num_warps,
            enable_fp_fusion=True,
        )
        return loss
    grid, block_classes, block_rows, options = _tiles(num_rows, num_classes)
    sums = torch.empty(grid, dtype=torch.float32, device=logits.device)
    _loss_kernel[grid](
        logits, targets, sums, num_rows, smoothing, num_classes, block_classes, block_rows, **options
    )
    _loss_sum_kernel[(1,)](
        sums, loss, len(sums), _BLOCK, triton.cdiv(len(sums), _BLOCK), enable_fp_fusion=True
    )
    return loss


def launch_gradient(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Run the backward kernel, in one launch; the gradient by the logits has their shape and dtype, and is contiguous."""
    num_rows, num_classes = logits.shape
    logits, targets = logits.contiguous(), targets.contiguous()
    out = torch.empty_like(logits)
    grid, block_classes, block_rows, options = _tiles(num_rows, num_classes)
    _loss_gradient_kernel[grid](
        gradient, logits, targets, out, num_rows, smoothing, num_classes, block_classes, block_rows, **options
    )
    return out


def _tiles(num_rows: int, num_classes: int) -> tuple[tuple[int], int, int, dict[str, Any]]:
    """Return the grid, the classes (padded) and rows of a program, and the launch options for programs of whole rows."""
    block_classes = triton.next_power_of_2(num_classes)
    block_rows = max(1, _BLOCK // block_classes)
    num_warps = min(32, max(4, block_classes // 256))
    # Triton 3.9 warns where fused multiply-adds, its default, are not asked for by name.
    return (
        (triton.cdiv(num_rows, block_rows),),
        block_classes,
        block_rows,
        {"num_warps": num_warps, "enable_fp_fusion": True},
    )


@torch.library.custom_op("quickres::label_smoothing_cross_entropy", mutates_args=(), device_types="cuda")
def _loss_op(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return launch_loss(logits, targets, smoothing)


@_loss_op.register_kernel("cpu")
def _loss_on_cpu(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return label_smoothing_cross_entropy_reference(logits, targets, smoothing)


@_loss_op.register_fake
def _fake_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return logits.new_empty((), dtype=torch.float32)


@torch.library.custom_op(
    "quickres::label_smoothing_cross_entropy_gradient", mutates_args=(), device_types="cuda"
)
def _gradient_op(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return launch_gradient(gradient, logits, targets, smoothing)


@_gradient_op.register_kernel("cpu")
def _gradient_on_cpu(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return label_smoothing_cross_entropy_gradient_reference(gradient, logits, targets, smoothing).contiguous()


@_gradient_op.register_fake
def _fake_gradient(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_for_backward(ctx, inputs, output) -> None:
    logits, targets, ctx.smoothing = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx, gradient):
    return _gradient_op(gradient, *ctx.saved_tensors, ctx.smoothing), None, None


_loss_op.register_autograd(_backward, setup_context=_save_for_backward)


def label_smoothing_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy with label smoothing, a float32 scalar, differentiable once by the logits.

    On a GPU the kernels of this module run, on a CPU the reference.

    Args:
        logits: (B, K) float16, bfloat16 or float32, finite; K at most 32768.
        targets: (B,) int64, class numbers in [0, K). Others, -100 included, are not skipped: on a GPU they make the loss and the
            gradients of their rows NaN, on a CPU they are an error.
        smoothing: weight of the uniform distribution, in [0, 1].

    Raises:
        ValueError: a shape or dtype is not as stated.
    """
    if logits.ndim != 2 or not 1 <= logits.shape[1] <= _MAX_CLASSES or logits.dtype not in _DTYPES:
        raise ValueError(
            f"logits must be float (B, K) with K at most {_MAX_CLASSES}, not {logits.dtype} {tuple(logits.shape)}"
        )
    if targets.shape != logits.shape[:1] or targets.dtype is not torch.int64:
        raise ValueError(
            f"targets must be int64 ({len(logits)},), not {targets.dtype} {tuple(targets.shape)}"
        )
    return _loss_op(logits, targets, smoothing)
