"""Time `label_smoothing_cross_entropy`, forward and backward, beside torch's `cross_entropy`."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case
from kernels.label_smoothing_cross_entropy.op import label_smoothing_cross_entropy

_SMOOTHING = 0.1
_NUM_INPUTS = 4


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    sizes = [(8, 10)] if quick else itertools.product((512, 1024, 2048), (10, 100, 1000))
    return [_case(device, batch_size, num_classes) for batch_size, num_classes in sizes]


def _case(device: torch.device, batch_size: int, num_classes: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(_NUM_INPUTS):
        logits = torch.randn(batch_size, num_classes, generator=generator).to(device, torch.float16)
        labels = torch.randint(num_classes, (batch_size,), generator=generator).to(device)
        inputs.append((logits.requires_grad_(), labels))
    return Case(
        label=f"batch {batch_size}, {num_classes} classes, fp16",
        kernel=_kernel_loss,
        reference=_torch_loss,
        reference_name="cross_entropy",
        inputs=inputs,
        batch_size=batch_size,
        precision="fp16",
        num_classes=num_classes,
        wrap=_with_gradient,
    )


def _with_gradient(loss_of: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward_and_backward(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss_of(logits, labels), logits)[0]

    return forward_and_backward


def _torch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), labels, label_smoothing=_SMOOTHING)


def _kernel_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return label_smoothing_cross_entropy(logits, labels, _SMOOTHING)
