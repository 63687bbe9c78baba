"""Compiles the Triton kernels of a pass, many at a time, before the pass itself.

Triton compiles a kernel when it is first launched with arguments of a kind, and the program waits. A network
on our kernels has dozens of them, and waits for one after another. So the pass is rehearsed: each launch only
submits a compilation to a pool of threads. Most of a compilation runs without Python's lock.

A rehearsal leaves a mark in Triton's cache. A process that finds it rehearses nothing: the kernels are there.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models.fused import FusedLayer
from pipeline.process.cores import share_of_cores
from pipeline.process.world import read_world

_MOST_THREADS = 16
_MARKS = "rehearsed"  # folder in Triton's cache
_KERNELS = Path(__file__).parents[2] / "kernels"
_one_at_a_time = threading.Lock()
_log = logging.getLogger(__name__)


def compile_ahead(
    rehearse: Callable[[], object], model: nn.Module, inputs: Sequence[torch.Tensor], *about: object
) -> None:
    """Compile the kernels that a pass through a network launches, in threads.

    Does nothing without a GPU, if no layer runs on our kernels, or if an earlier process has done it. A pass
    that fails, such as one that does not fit into memory, is left to the pass itself, which says why.

    Args:
        rehearse: takes the pass as `rehearsed` asks for.
        model: the network.
        inputs: of the pass, all on the same device.
        about: what else decides which kernels there are; told apart by their `repr`.
    """
    device = inputs[0].device
    fused = [isinstance(layer, FusedLayer) and layer.fused for layer in model.modules()]
    if device.type != "cuda" or not any(fused):
        return
    mark = _mark_of(model, inputs, (fused, torch.cuda.get_device_name(device), *about))
    if mark is not None and mark.exists():
        return
    if rehearsed(rehearse, [device]) and mark is not None:
        _leave(mark)
    torch.cuda.empty_cache()  # what the pass needed: not all is taken from torch's cache


def _mark_of(model: nn.Module, inputs: Sequence[torch.Tensor], about: Sequence[object]) -> Path | None:
    """Return the file that marks a rehearsal; None if Triton's cache is not in a known folder.

    A mark that is wrong costs time only: the kernels are then compiled one after another.
    """
    folder = os.environ.get("TRITON_CACHE_DIR")
    if not folder:
        return None
    import triton

    tensors = [*inputs, *model.parameters(), *model.buffers()]
    described = [(each.shape, each.stride(), each.dtype, each.requires_grad) for each in tensors]
    sources = sorted((path.name, path.stat().st_mtime_ns) for path in _KERNELS.rglob("*.py"))
    versions, processes = (torch.__version__, triton.__version__), read_world().size
    parts = (*versions, sources, processes, str(model), described, about)
    return Path(folder, _MARKS, hashlib.sha256(repr(parts).encode()).hexdigest()[:32])


def _leave(mark: Path) -> None:
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def rehearsed(rehearse: Callable[[], object], gpus: list[torch.device]) -> bool:
    """Run a pass, of which no kernel of Triton runs, nothing is convolved, and nothing is sent.

    Their results are memory that nobody has written. Everything else runs, so the pass must change nothing
    that is used later. Torch's random number generators are left as they were.

    Args:
        rehearse: takes the pass.
        gpus: whose generators are kept, besides that of the CPU.

    Returns:
        False if the pass failed.
    """
    try:
        with torch.random.fork_rng(gpus), compiling_only(), WithoutHeavyWork():
            rehearse()
    except Exception as error:
        _log.debug("rehearsal: %s", error)
        return False
    return True


@contextmanager
def compiling_only() -> Iterator[None]:
    """Compile what this thread launches, in threads, and do not run it. Backward passes stay in this thread.

    When the block ends, all kernels are compiled, except those that cannot be.
    """
    from triton import AsyncCompileMode
    from triton.runtime._async_compile import active_mode
    from triton.runtime.jit import JITFunction

    launch, this_thread = JITFunction.run, threading.get_ident()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        warmup = warmup or threading.get_ident() == this_thread
        return launch(self, *args, grid=grid, warmup=warmup, **kwargs)

    with _one_at_a_time, ThreadPoolExecutor(_num_threads(), "compile") as pool:
        JITFunction.run = run
        try:
            compiles_ahead = AsyncCompileMode(pool, ignore_errors=True)
            with compiles_ahead, torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            JITFunction.run = launch
            active_mode.set(None)  # Triton leaves it if Ctrl-C comes while it waits for the pool


def _num_threads() -> int:
    """Return this process's share of the CPU cores, but no more than help."""
    return min(share_of_cores(read_world().local_size), _MOST_THREADS)


class WithoutHeavyWork(TorchDispatchMode):
    """Returns memory that nobody has written for a convolution and for a sum over processes.

    cuDNN would choose an algorithm on such memory, and another process may have left its rehearsal.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and not kwargs and not args[6]:
            return _without_convolution(*args)
        if func is torch.ops.aten.convolution_backward.default and not kwargs and not args[7]:
            return _without_gradients(*args)
        if func.name() == "quickres::sum_over_processes":
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _without_convolution(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    on_meta = [torch.empty_like(tensor, device="meta") for tensor in (x, weight)]
    y = torch.ops.aten.convolution.default(*on_meta, None, *rest[1:])
    formats = suggest_memory_format(x), suggest_memory_format(weight)
    memory_format = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
    return torch.empty_like(y, device=x.device, memory_format=memory_format)


def _without_gradients(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor | None, ...]:
    results = torch.empty_like(x), torch.empty_like(weight), gradient.new_empty(len(weight))
    return tuple(result if is_wanted else None for result, is_wanted in zip(results, rest[-1], strict=True))
