"""Run the gradient by the logits, in one launch, which computes the softmax again.

Half-precision gradients made in the forward pass would be as many bytes to read back as the logits. They
would also lose small values to underflow before the loss scale reaches them.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.label_smoothing_cross_entropy.forward import softmax, tiles


@triton.jit
def _loss_gradient_kernel(  # noqa: PLR0913
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
    _, exponential, total, q, exists = softmax(
        logits_ptr, targets_ptr, row, num_rows, smoothing, NUM_CLASSES, BLOCK_CLASSES
    )
    scale = tl.load(gradient_ptr).to(tl.float32) / num_rows
    result = scale * (exponential * (1.0 / total)[:, None] - q)
    offset = row.to(tl.int64)[:, None] * NUM_CLASSES + tl.arange(0, BLOCK_CLASSES)[None, :]
    tl.store(out_ptr + offset, result.to(out_ptr.dtype.element_ty), mask=exists)


def launch_gradient(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the gradient by the logits, contiguous, in their shape and dtype."""
    num_rows, num_classes = logits.shape
    logits, targets = logits.contiguous(), targets.contiguous()
    out = torch.empty_like(logits)
    grid, block_classes, block_rows, options = tiles(num_rows, num_classes)
    sizes = num_classes, block_classes, block_rows
    _loss_gradient_kernel[grid](gradient, logits, targets, out, num_rows, smoothing, *sizes, **options)
    return out
