"""Implements Muon: orthogonalised momentum for a network's convolutions, fused SGD for all other weights.

torch's own Muon takes only matrices, no convolutions. It does not know the scaler's found_inf, and it reads
the learning rate back to the host, so that its step cannot be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange

# The quintic polynomial of Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024),
# and the number of times that it is applied.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_EPS = 1e-7


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Replace the singular values of each matrix by ones, approximately.

    They end between about 0.7 and 1.2, or lower if they were tiny compared with the largest one. The method
    is a Newton-Schulz iteration in bfloat16, without any decomposition: x ← a x + b (x xᵀ) x + c (x xᵀ)² x
    (Jordan 2024).

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
    """Muon (Jordan 2024) for weights of two or more dimensions, as matrices with one row per output channel.

    The update is that of `torch.optim.Muon`: Nesterov momentum as a running mean, orthogonalised, times
    sqrt(max(1, rows / columns)), with decoupled weight decay. All of it runs on the device, so that a step
    can be captured in a CUDA graph. Matrices of one shape go through the iteration together.

    The update is written into `.grad`, and fused SGD without momentum applies it. Fused SGD also skips the
    update if a gradient overflowed. Gradients must be unscaled before (`GradScaler.unscale_`).

    Args:
        matrices: the weights for Muon.
        others: parameter groups for SGD.
        lr: device scalar, the learning rate of the matrices. Its owner changes it in place.
        momentum: of both.
        nesterov: of both.
        weight_decay: of the matrices.
        sgd_lr_ratio: learning rate of the others, as a fraction of `lr`.
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
        muon_group = {
            "params": list(matrices),
            "weight_decay": weight_decay,
            "momentum": 0.0,
            "nesterov": False,
        }
        sgd_groups = [{**group, "lr": sgd_lr} for group in others]
        super().__init__([muon_group, *sgd_groups], lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        self._same_shape = list(by_shape.values())
        # one stream per weight shape: the kernels are small, so shapes run concurrently
        self._streams: list[torch.cuda.Stream] = []
        if lr.device.type == "cuda":
            self._streams = [torch.cuda.Stream(lr.device) for _ in self._same_shape]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        is_unscaled = getattr(self, "grad_scale", None) is None
        assert closure is None and is_unscaled, "gradients must be unscaled first"
        muon_group, *sgd_groups = self.param_groups
        for group in sgd_groups:
            torch.mul(muon_group["lr"], self._sgd_lr_ratio, out=group["lr"])
        if self._streams:
            self._replace_gradients_concurrently(torch.cuda.current_stream(muon_group["lr"].device))
        else:
            for matrices in self._same_shape:
                self._replace_gradients(matrices)
        super().step()

    def _replace_gradients_concurrently(self, current: torch.cuda.Stream) -> None:
        """Process each shape on its own stream, after all earlier and before all later work of CURRENT."""
        for stream, matrices in zip(self._streams, self._same_shape, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._replace_gradients(matrices)
        for stream in self._streams:
            current.wait_stream(stream)

    def _replace_gradients(self, same_shape: list[torch.Tensor]) -> None:
        """Write the updates of matrices of one shape into their gradients, if they have gradients."""
        found_inf = getattr(self, "found_inf", None)
        matrices = [matrix for matrix in same_shape if matrix.grad is not None]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        if not gradients:
            return
        # the order of the columns does not matter, so they are read in their order in memory
        last = matrices[0].dim() == 4 and matrices[0].is_contiguous(memory_format=torch.channels_last)
        gradient, old_momentum = _stack(gradients, last), _stack(buffers, last)
        momentum = old_momentum.lerp(gradient, 1 - self._muon_momentum)
        if found_inf is not None:
            momentum = torch.where(found_inf > 0, old_momentum, momentum)
        torch._foreach_copy_(buffers, _unstack(momentum, last))
        update = gradient.lerp(momentum, self._muon_momentum) if self._muon_nesterov else momentum
        flat = update.flatten(2)
        scale = math.sqrt(max(1.0, flat.shape[1] / flat.shape[2]))
        update = (orthogonalise(flat) * scale).reshape(update.shape)
        torch._foreach_copy_(gradients, _unstack(update, last))


def _stack(weights: Sequence[torch.Tensor], channels_last: bool) -> torch.Tensor:
    """Stack weights; with CHANNELS_LAST their input channels become the last dimension."""
    return torch.stack([rearrange(w, "o i h w -> o h w i") if channels_last else w for w in weights])


def _unstack(stacked: torch.Tensor, channels_last: bool) -> list[torch.Tensor]:
    """Undo `_stack`."""
    return list(rearrange(stacked, "n o h w i -> n o i h w") if channels_last else stacked)
