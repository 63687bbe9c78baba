"""Divides the time of training steps among kinds of kernels, and names the largest kernels."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.profiling.kernel_shares import KernelShare, Profile, add_by_name, launches_of, sum_of
from pipeline.profiling.roofline import (
    CONVOLUTION,
    FORWARD,
    INPUT_GRADIENT,
    NORM_BACKWARD,
    NORM_FORWARD,
    OPTIMIZER,
    STEM,
    WEIGHT_GRADIENT,
)

LOADER, IDLE = "loader", "idle"
_LARGEST = 3  # kernels that are named of each kind
_LONGEST_NAME = 72  # characters

# The first pattern that matches a kernel's name determines its kind. Inductor names its kernels after the
# fused operators. On a CPU, operators of torch take the place of kernels.
_KINDS = (
    (STEM, r"_stem_"),
    (NORM_BACKWARD, r"batch_norm_backward|_norm_gradient"),
    (NORM_FORWARD, r"batch_norm|_norm_(statistics|apply|inference)_kernel"),
    ("loss", r"_loss_|softmax|nll_loss"),
    (f"{CONVOLUTION}both gradients", r"convolution_backward"),
    (WEIGHT_GRADIENT, r"wgrad|_conv_weight_"),
    (INPUT_GRADIENT, r"dgrad"),
    (FORWARD, r"fprop|implicit_?gemm|convolution::|winograd|cudnn.*(conv|Kernel)|aten::\w*convolution"),
    (OPTIMIZER, r"_muon_|multi_tensor_apply|amp_update|FusedSgd|fused_sgd|fused_adam"),
    # before the loader: names of cuBLAS kernels for Hopper hold "warpspecialized"
    ("matrix product", r"gemm|cutlass|nvjet|aten::(addmm|mm|linear)$"),
    (LOADER, r"augment|epoch_draws|[Ww]arp|[Ee]rase|SliceFlipNormalize|dali|nvimgcodec|[Jj]peg|idct"),
    ("pool", r"pool"),
    ("communication", r"nccl"),
    (
        "element-wise and reduction",
        r"triton|elementwise|reduce|Functor|threshold|aten::(add|mul|sum|mean)",
    ),
    ("copy and fill", r"[Mm]emcpy|[Mm]emset|copy|fill"),
)


@dataclass(frozen=True)
class Share:
    """One row of the table: time and launches of one kind of kernel, per step.

    Attributes:
        fraction: of the time from the first kernel to the last, for `largest`, too.
        largest: the kernels of this kind that take most, at most three, with short names; instances of one
            template count as one kernel.
    """

    kind: str
    microseconds: float
    fraction: float
    launches: float
    largest: tuple[KernelShare, ...] = ()


def kind_of(kernel: str) -> str:
    """Return the kind of a GPU kernel, or of an operator on a CPU, by its name."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel)), "other")


def short_name(kernel: str) -> str:
    """Return the name of a kernel without return type, arguments of templates and functions, at most 72 long.

    >>> short_name("void at::native::vectorized_elementwise_kernel<4, Add<float>, Array<char*, 3>>(int, Add)")
    'at::native::vectorized_elementwise_kernel'
    """
    plain = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    inner = re.match(r"cutlass\w*::Kernel\d*<(\w+)", plain)  # CUTLASS names its kernel in the template
    if inner is not None:
        return inner[1][:_LONGEST_NAME]
    return re.split(r"[<(]", plain, maxsplit=1)[0].strip()[:_LONGEST_NAME] or kernel[:_LONGEST_NAME]


def shares(profile: Profile, steps: int) -> list[Share]:
    """Return the GPU's time by kind of kernel, largest first, and the idle time last.

    Args:
        profile: that has ended; nothing is returned if it saw nothing on a GPU.
        steps: number of steps that it covers.
    """
    launches = launches_of(profile)
    if not launches:
        return []
    covered, end = 0.0, launches[0].start
    for launch in launches:
        covered += max(launch.end - max(end, launch.start), 0.0)
        end = max(end, launch.end)
    span = end - launches[0].start
    rows = _divide([(launch.name, launch.microseconds, 1) for launch in launches], steps, span)
    return [*rows, Share(IDLE, (span - covered) / steps, (span - covered) / span, 0.0)]


def _divide(timed: list[tuple[str, float, int]], steps: int, span: float) -> list[Share]:
    """Add up (name, microseconds, launches) by kind and by short name, largest first."""
    by_kind: dict[str, list[tuple[str, float, int]]] = {}
    for name, spent, launches in timed:
        by_kind.setdefault(kind_of(name), []).append((short_name(name), spent, launches))
    rows = []
    for kind, of_kind in by_kind.items():
        kernels = add_by_name(of_kind, steps, span)
        total = sum_of(kernels, kind)
        largest = tuple(kernels[:_LARGEST])
        rows.append(Share(kind, total.microseconds, total.fraction, total.launches, largest))
    return sorted(rows, key=lambda row: -row.microseconds)


def new_profiler(device: torch.device) -> torch.profiler.profile:
    """Return a profiler of operators, and on a GPU of its kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, acc_events=True)


def measure_shares(run: Callable[[int], None], device: torch.device, steps: int) -> list[Share]:
    """Run steps under torch's profiler, and divide their time.

    Args:
        run: runs this many steps.
        device: of the steps. On a CPU, the time is that of torch's operators without those that they call.
        steps: to profile, after one more.
    """
    on_gpu = device.type == "cuda"
    run(1)
    with new_profiler(device) as profiler:
        run(steps)
        if on_gpu:
            torch.cuda.synchronize(device)
    if on_gpu:
        return shares(profiler, steps)
    operators = [(event.key, event.self_cpu_time_total, event.count) for event in profiler.key_averages()]
    return _divide(operators, steps, sum(spent for _, spent, _ in operators))
