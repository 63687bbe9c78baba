"""The arithmetic of a training step, and the rate at which this machine can do arithmetic."""

import torch

from benchmarks.timing import Stopwatch
from pipeline.config import ModelConfig
from pipeline.models import build_model
from pipeline.models.flops import count_flops


def flops_per_image(model: ModelConfig, num_classes: int, image_size: tuple[int, int], channels: int = 3) -> float:
    """Floating-point operations (a multiply-add is two) of forward and backward for one training image, by `count_flops`."""
    network = build_model(model, num_classes, channels, max(image_size))
    return count_flops(network, (channels, *image_size), backward=True)[""]


def matmul_flops_per_s(device: torch.device, repeats: int = 10) -> float:
    """Rate of a large square matrix product: 8192³ in bfloat16 on a GPU, 1024³ in float32 on the CPU; the median of the repeats."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    stopwatch = Stopwatch(device)
    for _ in range(3):
        torch.mm(left, right)
    seconds = sorted(stopwatch.seconds(lambda: torch.mm(left, right)) for _ in range(repeats))
    return 2 * size**3 / seconds[repeats // 2]
