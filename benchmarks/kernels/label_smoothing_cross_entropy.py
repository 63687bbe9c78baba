"""`kernels.label_smoothing_cross_entropy.op`, forward and backward, beside torch's `cross_entropy(label_smoothing=…)`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case
from kernels.label_smoothing_cross_entropy.op import label_smoothing_cross_entropy

_SMOOTHING = 0.1
_SETS = 4  # of inputs


def cases(device: torch.device, quick: bool) -> list[Case]:
    sizes = (
        [(8, 10)]
        if quick
        else [
            (batch_size, num_classes) for batch_size in (512, 1024, 2048) for num_classes in (10, 100, 1000)
        ]
    )
    return [_case(device, batch_size, num_classes) for batch_size, num_classes in sizes]


def _case(device: torch.device, batch_size: int, num_classes: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(_SETS):
        logits = (
            torch.randn(batch_size, num_classes, generator=generator)
            .to(device, torch.float16)
            .requires_grad_()
        )
        inputs.append((logits, torch.randint(num_classes, (batch_size,), generator=generator).to(device)))
    return Case(
        label=f"batch {batch_size}, {num_classes} classes, fp16",
        kernel=_kernel_loss,
        reference=_torch_loss,
        reference_name="cross_entropy",
        inputs=inputs,
        batch_size=batch_size,
        precision="fp16",
        num_classes=num_classes,
        around=_with_gradient,
    )


def _with_gradient(loss_of: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward_and_backward(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss_of(logits, labels), logits)[0]

    return forward_and_backward


def _torch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), labels, label_smoothing=_SMOOTHING)


def _kernel_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return label_smoothing_cross_entropy(logits, labels, _SMOOTHING)
