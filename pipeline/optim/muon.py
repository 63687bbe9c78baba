"""Muon: momentum whose matrix is made orthogonal, for the convolutions of a network; fused SGD for everything else."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange

# The quintic of Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), and how often it is applied.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_EPS = 1e-7


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Replace the singular values of each matrix by ones, roughly: they end between about 0.7 and 1.2, or below where they were tiny
    beside the largest.

    Newton-Schulz iteration in bfloat16, which needs no decomposition: x ← a x + b (x xᵀ) x + c (x xᵀ)² x (Jordan 2024).

    Args:
        matrices: (N, rows, columns), any floating type.

    Returns:
        The same shape, bfloat16.
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class Muon(torch.optim.SGD):
    """Muon (Jordan 2024) for weights of two or more dimensions, seen as matrices of one row per output channel.

    An update is that of `torch.optim.Muon`: Nesterov momentum as a running mean, made orthogonal, times sqrt(max(1, rows / columns)), with
    decoupled weight decay. torch's own takes neither convolutions nor the scaler's found_inf, and reads the learning rate back to the
    host; this one does all of it on the device, so that a step can be captured in a CUDA graph. Matrices of one shape go through the
    iteration together.

    It works by putting the update into `.grad` and letting fused SGD without momentum apply it, which also skips it where a gradient
    overflowed. Gradients must be unscaled before (`GradScaler.unscale_`).

    Args:
        matrices: the weights that are Muon's.
        others: parameter groups for SGD.
        lr: device scalar, shared with whoever sets it; the learning rate of the matrices.
        momentum: of both.
        nesterov: of both.
        weight_decay: of the matrices.
        sgd_lr_ratio: learning rate of the others, as a share of `lr`.
    """

    def __init__(
        self,
        matrices: Sequence[torch.Tensor],
        others: Sequence[dict[str, Any]],
        lr: torch.Tensor,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        sgd_lr_ratio: float,
    ):
        self._muon_momentum, self._muon_nesterov, self._sgd_lr_ratio = momentum, nesterov, sgd_lr_ratio
        sgd_lr = lr * sgd_lr_ratio
        plain = {"params": list(matrices), "weight_decay": weight_decay, "momentum": 0.0, "nesterov": False}
        super().__init__(
            [plain, *({**group, "lr": sgd_lr} for group in others)],
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            fused=True,
        )
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        self._alike = list(by_shape.values())
        # many kernels that are small each: shapes do not wait for each other
        self._streams = (
            [torch.cuda.Stream(lr.device) for _ in self._alike] if lr.device.type == "cuda" else []
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        assert closure is None and getattr(self, "grad_scale", None) is None, (
            "gradients must be unscaled first"
        )
        matrices, *others = self.param_groups
        for group in others:
            torch.mul(matrices["lr"], self._sgd_lr_ratio, out=group["lr"])
        if self._streams:
            self._replace_side_by_side(torch.cuda.current_stream(matrices["lr"].device))
        else:
            for alike in self._alike:
                self._replace_gradients(alike)
        super().step()

    def _replace_side_by_side(self, current: torch.cuda.Stream) -> None:
        """Every shape on a stream of its own, between what CURRENT has done and what it does next."""
        for stream, alike in zip(self._streams, self._alike, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._replace_gradients(alike)
        for stream in self._streams:
            current.wait_stream(stream)

    def _replace_gradients(self, alike: list[torch.Tensor]) -> None:
        """Put the update of these matrices, all of one shape, where their gradients are; one without a gradient is left alone."""
        found_inf = getattr(self, "found_inf", None)
        matrices = [matrix for matrix in alike if matrix.grad is not None]
        gradients = [matrix.grad for matrix in alike if matrix.grad is not None]
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        if not gradients:
            return
        # which column is which plays no part, so they are taken as they lie in memory
        last = matrices[0].dim() == 4 and matrices[0].is_contiguous(memory_format=torch.channels_last)
        gradient, before = (
            torch.stack([rearrange(t, "o i h w -> o h w i") if last else t for t in ts])
            for ts in (gradients, buffers)
        )
        momentum = before.lerp(gradient, 1 - self._muon_momentum)
        if found_inf is not None:
            momentum = torch.where(found_inf > 0, before, momentum)
        torch._foreach_copy_(buffers, _one_by_one(momentum, last))
        update = gradient.lerp(momentum, self._muon_momentum) if self._muon_nesterov else momentum
        flat = update.flatten(2)
        update = (orthogonalise(flat) * math.sqrt(max(1.0, flat.shape[1] / flat.shape[2]))).reshape(
            update.shape
        )
        torch._foreach_copy_(gradients, _one_by_one(update, last))


def _one_by_one(stacked: torch.Tensor, channels_last: bool) -> list[torch.Tensor]:
    """The weights that were stacked, of which CHANNELS_LAST have their input channels at the end."""
    return list(rearrange(stacked, "n o h w i -> n o i h w") if channels_last else stacked)
