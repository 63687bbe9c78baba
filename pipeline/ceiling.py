"""How fast this machine can compute and move bytes at best: what a profile and the benchmarks compare with."""

import time
from collections.abc import Callable

import torch


def matmul_flops_per_s(device: torch.device) -> float:
    """Rate of a large square matrix product, the median of ten: 8192³ in bfloat16 on a GPU; on the CPU 1024³ in float32 or bfloat16.

    The faster of the two: a CPU with instructions for bfloat16 multiplies in it at several times its rate in float32, one without slower.
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
