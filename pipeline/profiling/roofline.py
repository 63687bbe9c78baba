"""Computes the least work of a training step: arithmetic and memory traffic, by kind of kernel.

The profile divides this work by the time.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kernels.arguments import SMOOTH_ACTIVATIONS
from pipeline.config import Config
from pipeline.models.flops import on_meta
from pipeline.models.layers import NormAct, NormReluPool, PoolNormAct, Projection, Stem
from pipeline.models.speednet import Whitening
from pipeline.profiling.layer_work import (
    CONVOLUTION,
    FORWARD,
    INPUT_GRADIENT,
    NORM_BACKWARD,
    NORM_FORWARD,
    OPTIMIZER,
    OPTIMIZER_VALUES,
    WEIGHT_GRADIENT,
    Work,
    element_bytes,
    layer_passes,
)

STEM = "stem: convolution, batch norm, ReLU"


def step_work_of(
    config: Config, model: nn.Module, input_shape: tuple[int, int, int], world_size: int
) -> dict[str, Work]:
    """Return the work of one training step of a run, by kind of kernel: `step_work` as the config says.

    Args:
        config: of the run.
        model: as one process trains it.
        input_shape: (C, H, W) of an image.
        world_size: processes that share the batch.
    """
    return step_work(
        *(model, input_shape),
        batch_size=config.data.batch_size // world_size,
        element_bytes=element_bytes(config.precision),
        optimizer=config.optimizer.name,
        scaled=config.precision.mode == "fp16",
    )


def step_work(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    batch_size: int,
    element_bytes: int,
    optimizer: str,
    scaled: bool,
) -> dict[str, Work]:
    """Return the work of one training step by kind of kernel.

    That is the arithmetic of the convolutions, the memory traffic of SGD or AdamW and, where our kernels run
    them, the traffic of batch norm and stem.

    Args:
        model: as one process trains it.
        input_shape: (C, H, W) of an image.
        batch_size: images of this process.
        element_bytes: of an activation: 2 under autocast, 4 in float32.
        optimizer: as `optimizer.name`.
        scaled: True if a loss scaler reads the gradients before the optimizer.

    The passes over an activation are those of the kernels (`kernels/batch_norm_act/op.py`,
    `dual_batch_norm_act/op.py`, `stem_conv_norm_act/op.py`, `pool_norm_act/op.py`, `norm_relu_pool/op.py`,
    `whitening_stem/op.py`). A norm makes 3 passes forward and 5 backward, and one more each if it adds a
    residual; with SiLU or GELU yet one more backward. The two norms of a block with a projection shortcut
    take 5 and 9 passes together. A norm after a max-pool makes 3 and 4 passes over the pooled activation, and
    1 each over the one before the pool. A norm with a max-pool after it makes 2 passes each way over the
    activation before the pool, and 2 and 3 over the pooled one. The fused stem makes 1 and 2, a fused
    whitening 1 and 1.
    """
    work = _convolution_work(model, input_shape, batch_size)
    if optimizer != "muon":  # Muon's work is matrix products
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        work[OPTIMIZER] = Work(num_bytes=(OPTIMIZER_VALUES[optimizer] + scaled) * weights)
    for kind, elements in _elements_moved(model, input_shape).items():
        work[kind] = Work(num_bytes=elements * batch_size * element_bytes)
    return work


def _convolution_work(
    model: nn.Module, input_shape: tuple[int, int, int], batch_size: int
) -> dict[str, Work]:
    modules = model.named_modules()
    fused = {name for name, module in modules if isinstance(module, Stem | Whitening) and module.fused}
    flops = dict.fromkeys((FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT), 0.0)
    for each in layer_passes(model, input_shape, batch_size, element_bytes=2):
        if each.kind.startswith(CONVOLUTION) and each.layer not in fused:
            flops[each.kind] += each.flops
    return {kind: Work(amount) for kind, amount in flops.items()}


def _elements_moved(model: nn.Module, input_shape: tuple[int, int, int]) -> Counter[str]:
    """Count the elements of activations that our batch-norm and stem kernels read and write for one image.

    The result is empty if these kernels are not used.
    """
    moved = Counter[str]()
    network = on_meta(model).eval()
    stems = {module[1] for module in network.modules() if isinstance(module, Stem) and module.fused}
    blocks = [
        module for module in network.modules() if isinstance(getattr(module, "shortcut", None), Projection)
    ]
    projected = {child for block in blocks for child in block.children() if isinstance(child, NormAct)}

    def count(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        size = (output[0] if isinstance(output, tuple) else output)[0].numel()
        residual = keywords.get("residual") is not None
        if isinstance(layer, Whitening) or layer in stems:
            moved[STEM] += (2 if isinstance(layer, Whitening) else 3) * size
            return
        if isinstance(layer, PoolNormAct):
            before = inputs[0].numel()
            moved[NORM_FORWARD] += before + 3 * size
            moved[NORM_BACKWARD] += before + 4 * size
            return
        if isinstance(layer, NormReluPool):
            before = inputs[0].numel()
            if layer.pools:
                moved[NORM_FORWARD] += 2 * before + 2 * size
                moved[NORM_BACKWARD] += 2 * before + 3 * size
                return
            size = before
        together = 2 if residual and layer in projected else 0  # the projection's norm is fused into this one
        moved[NORM_FORWARD] += (3 + residual - together) * size
        again = residual and layer.activation in SMOOTH_ACTIVATIONS  # the residual is read again
        moved[NORM_BACKWARD] += (5 + residual - together + again) * size

    for module in network.modules():
        if isinstance(module, NormAct | Whitening) and module.fused:
            module.register_forward_hook(count, with_kwargs=True)
    network(torch.empty(1, *input_shape, device="meta"))
    return moved


def measure_best(device: torch.device) -> Work:
    """Measure operations and bytes of a second: in a large matrix product, and in a large copy."""
    return Work(matmul_flops_per_s(device), copy_bytes_per_s(device))


def matmul_flops_per_s(device: torch.device) -> float:
    """Measure the rate of a large square matrix product, the median of ten.

    On a GPU 8192³ in bfloat16. On a CPU 1024³ in float32 or bfloat16, whichever is faster: bfloat16 is
    several times faster on a CPU with instructions for it, and slower on one without.
    """
    if device.type == "cuda":
        return _product_flops_per_s(8192, torch.bfloat16, device)
    return max(_product_flops_per_s(1024, dtype, device) for dtype in (torch.float32, torch.bfloat16))


def _product_flops_per_s(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: torch.mm(left, right), device)


def copy_bytes_per_s(device: torch.device) -> float:
    """Measure bytes read and written a second by a copy of 1 GiB (CPU: 64 MiB), the median of ten."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Return the median time; the first three repeats do not count."""
    times = []
    for _ in range(3 + repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    return sorted(times[3:])[repeats // 2]
