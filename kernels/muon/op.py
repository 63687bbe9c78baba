"""Take a step of Muon: momentum, orthogonalised updates, and the weights, as one operator.

Two launches go through the weights, for up to 32 matrices of any shapes. Each iteration takes three launches
for all small matrices, and three for all large ones. PyTorch takes five launches (three products and two
copies) for each iteration of each shape, and about twenty others for each shape.

A matrix has one row for each output channel (the first dimension of a weight). The order of its columns does
not matter: they are read in their order in memory.
"""

from collections.abc import Sequence

import torch

from kernels.muon.forward import launch_step
from kernels.muon.reference import MuonSettings, muon_step_reference


def muon_step(  # noqa: PLR0913
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    lr: torch.Tensor,
    weight_decay: float,
    settings: MuonSettings,
    found_inf: torch.Tensor | None = None,
    renormalise: torch.Tensor | None = None,
) -> None:
    """Update momenta and weights in place (Keller Jordan, "Muon: an optimizer for hidden layers in neural
    networks", 2024).

    The momentum becomes momentum * old + (1 - momentum) * gradient. The update is the momentum, or with
    Nesterov's form momentum * new + (1 - momentum) * gradient, orthogonalised (`orthogonalise`) in bfloat16,
    times sqrt(max(1, rows / columns)). The weight becomes weight - lr * (update + weight_decay * weight).

    On a GPU the kernels run, on a CPU the reference. Nothing waits for the device, and all may be captured in
    a CUDA graph after a first call with the same shapes, which compiles kernels and copies tables.

    Args:
        weights: float32 of one device, two or more dimensions each, updated.
        momenta: float32, of the same shapes, updated.
        gradients: float32, of the same shapes; unscaled.
        lr: scalar float32.
        weight_decay: decoupled decay.
        settings: constants of the method.
        found_inf: scalar float32; if it is greater than 0, nothing is updated.
        renormalise: scalar float32; if it is greater than 0, each weight is given the norm sqrt(rows) before
            its update (airbench94, github.com/KellerJordan/cifar10-airbench).

    Raises:
        ValueError: a shape or dtype is not as stated.
    """
    for number, (weight, *others) in enumerate(zip(weights, momenta, gradients, strict=True)):
        shapes = {weight.shape, *(other.shape for other in others)}
        dtypes = {weight.dtype, *(other.dtype for other in others)}
        if len(shapes) > 1 or weight.ndim < 2 or not weight.numel() or dtypes != {torch.float32}:
            raise ValueError(
                f"weights[{number}], its momentum and its gradient must be float32, of one shape of two or "
                f"more dimensions, not {sorted(map(str, dtypes))} {sorted(map(tuple, shapes))}"
            )
    if weights and (lr.device != weights[0].device or lr.dtype is not torch.float32):
        raise ValueError(f"lr must be float32 on {weights[0].device}, not {lr.dtype} on {lr.device}")
    if settings.steps < 1:
        raise ValueError(f"settings.steps must be at least 1, not {settings.steps}")
    if weights:
        _step_op(
            list(weights), list(momenta), list(gradients), lr, weight_decay, *settings, found_inf, renormalise
        )


@torch.library.custom_op("quickres::muon_step", mutates_args=("weights", "momenta"), device_types="cuda")
def _step_op(  # noqa: PLR0913
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    lr: torch.Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    steps: int,
    coefficients: Sequence[float],
    found_inf: torch.Tensor | None,
    renormalise: torch.Tensor | None,
) -> None:
    a, b, c = coefficients
    settings = MuonSettings(momentum, nesterov, steps, (a, b, c))
    step_on_gpu((weights, momenta, gradients), lr, weight_decay, settings, found_inf, renormalise)


def step_on_gpu(
    tensors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]],
    lr: torch.Tensor,
    weight_decay: float,
    settings: MuonSettings,
    found_inf: torch.Tensor | None = None,
    renormalise: torch.Tensor | None = None,
) -> None:
    """Run the kernels, on copies of tensors that are in another order in memory than they can read.

    A GPU older than Ampere multiplies no bfloat16 in a kernel of Triton: there the reference runs.
    """
    weights, momenta, gradients = tensors
    device = weights[0].device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        muon_step_reference(*tensors, lr, weight_decay, settings, found_inf, renormalise)
        return
    dense = [_without_gaps(weight) for weight in weights]
    dense_momenta = [_in_order_of(w, tensor) for w, tensor in zip(dense, momenta, strict=True)]
    dense_gradients = [_in_order_of(w, tensor) for w, tensor in zip(dense, gradients, strict=True)]
    launch_step(dense, dense_momenta, dense_gradients, lr, weight_decay, settings, found_inf, renormalise)
    for original, used in zip((*weights, *momenta), (*dense, *dense_momenta), strict=True):
        if original is not used:
            original.copy_(used)


@_step_op.register_kernel("cpu")
def _step_on_cpu(  # noqa: PLR0913
    weights,
    momenta,
    gradients,
    lr,
    weight_decay,
    momentum,
    nesterov,
    steps,
    coefficients,
    found_inf,
    renormalise,
):
    a, b, c = coefficients
    settings = MuonSettings(momentum, nesterov, steps, (a, b, c))
    muon_step_reference(weights, momenta, gradients, lr, weight_decay, settings, found_inf, renormalise)


@_step_op.register_fake
def _fake_step(*arguments):
    return None


def _without_gaps(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight if its rows follow one another in memory, without gaps; otherwise a copy."""
    dense = weight.is_contiguous() or (
        weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    )
    return weight if dense else weight.contiguous()


def _in_order_of(weight: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor if its elements are in the order of the weight's in memory; otherwise a copy."""
    strides = zip(weight.shape, weight.stride(), tensor.stride(), strict=True)
    if all(size == 1 or stride == other for size, stride, other in strides):
        return tensor
    return torch.empty_like(weight).copy_(tensor)
