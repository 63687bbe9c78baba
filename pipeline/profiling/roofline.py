"""What a training step has to do at least: arithmetic and memory traffic, by kind of kernel. The profile divides them by the time."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.models.flops import count_flops, on_meta
from pipeline.models.layers import NormAct, Projection, Stem

CONVOLUTION = "convolution: "
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = (
    CONVOLUTION + way for way in ("forward", "input gradient", "weight gradient")
)
NORM_FORWARD, NORM_BACKWARD = (f"batch norm (+ ReLU, add): {way}" for way in ("forward", "backward"))
STEM = "stem: convolution, batch norm, ReLU"
OPTIMIZER = "optimizer and scaler"

# float32 values of a weight that a fused optimizer reads and writes: weight and gradient, and what it
# remembers (SGD: momentum). Muon's work is matrix products.
_OPTIMIZER_VALUES = {"sgd": 5, "adamw": 7}


@dataclass(frozen=True)
class Work:
    """Of one kind of kernel in one step; None where nothing is known.

    Attributes:
        flops: floating-point operations, a multiply-add being two.
        num_bytes: read and written.
    """

    flops: float | None = None
    num_bytes: float | None = None


def step_work(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    batch_size: int,
    element_bytes: int,
    optimizer: str,
    scaled: bool,
) -> dict[str, Work]:
    """Arithmetic of the convolutions, and traffic of SGD or AdamW and, where our kernels do it, of batch norm
    and stem.

    Args:
        model: as it is trained by one process.
        input_shape: (C, H, W) of an image.
        batch_size: images of this process.
        element_bytes: of an activation: 2 under autocast, 4 in float32.
        optimizer: as `optimizer.name`.
        scaled: whether a loss scaler reads the gradients before.

    The passes over an activation are those of the kernels (`kernels/batch_norm_act/op.py`,
    `dual_batch_norm_act.py`, `stem_conv_norm_act.py`): 3 forward and 5 backward, one more each with a
    residual, and with a projection shortcut 5 and 9 for the two norms together; the fused stem 1 and 2.
    """
    flops = {name: batch_size * count for name, count in count_flops(model, input_shape).items()}
    convolutions = {
        name: flops.get(name, 0.0) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    stems = [
        (name, module) for name, module in model.named_modules() if isinstance(module, Stem) and module.fused
    ]
    for name, _ in stems:
        convolutions.pop(f"{name}.0")
    first = (
        next(iter(convolutions.values()), 0.0) if not stems else 0.0
    )  # the gradient by the images is not wanted
    total = sum(convolutions.values())
    work = {FORWARD: Work(total), INPUT_GRADIENT: Work(total - first), WEIGHT_GRADIENT: Work(total)}
    if optimizer in _OPTIMIZER_VALUES:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        work[OPTIMIZER] = Work(num_bytes=4 * (_OPTIMIZER_VALUES[optimizer] + scaled) * parameters)
    elements = _elements_moved(model, input_shape)
    return work | {
        kind: Work(num_bytes=count * batch_size * element_bytes) for kind, count in elements.items()
    }


def _elements_moved(model: nn.Module, input_shape: tuple[int, int, int]) -> Counter[str]:
    """Elements of activations that our batch-norm and stem kernels read and write for one image; nothing where they are not used."""
    moved = Counter[str]()
    network = on_meta(model).eval()
    stems = {module[1] for module in network.modules() if isinstance(module, Stem) and module.fused}
    blocks = [
        module for module in network.modules() if isinstance(getattr(module, "shortcut", None), Projection)
    ]
    projected = {child for block in blocks for child in block.children() if isinstance(child, NormAct)}

    def count(norm: nn.Module, _: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        size = (output[0] if isinstance(output, tuple) else output)[0].numel()
        residual = keywords.get("residual") is not None
        if norm in stems:
            moved[STEM] += 3 * size
            return
        together = 2 if residual and norm in projected else 0  # the projection's norm rides in this one
        moved[NORM_FORWARD] += (3 + residual - together) * size
        moved[NORM_BACKWARD] += (5 + residual - together) * size

    for module in network.modules():
        if isinstance(module, NormAct) and module.fused:
            module.register_forward_hook(count, with_kwargs=True)
    network(torch.empty(1, *input_shape, device="meta"))
    return moved


def matmul_flops_per_s(device: torch.device) -> float:
    """Rate of a large square matrix product, the median of ten: 8192³ in bfloat16 on a GPU; on the CPU 1024³
    in float32 or bfloat16.

    The faster of the two: a CPU with instructions for bfloat16 multiplies in it at several times its rate in
    float32, one without slower.
    """
    if device.type == "cuda":
        return _product_flops_per_s(8192, torch.bfloat16, device)
    return max(_product_flops_per_s(1024, dtype, device) for dtype in (torch.float32, torch.bfloat16))


def _product_flops_per_s(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: torch.mm(left, right), device)


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written by a copy of 1 GiB (64 MiB on the CPU) in the device's memory; the median of ten."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median, after three that are not counted."""
    taken = []
    for _ in range(3 + repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return sorted(taken[3:])[repeats // 2]
