"""Measures, on two processes, the parts of a step that the prediction of `scaling_model.py` needs."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.measure.timing import Stopwatch, Timing
from benchmarks.measure.workloads import StepWorkload
from benchmarks.scaling.scaling_model import Calibration
from pipeline.data.batch import Batch
from pipeline.models import ResNet
from pipeline.models.layers import NormAct
from pipeline.training.capture import new_graph
from pipeline.training.state import TrainState

_LATENCY_BYTES = 256  # of the message whose time is the latency
_REDUCTIONS = 20  # of one measurement
_REPEATS = 5
_MOMENT_BYTES = 8  # float64
_GRADIENT_BYTES = 4  # float32


def calibrate(
    apart: StepWorkload,
    averaging: StepWorkload,
    timings: Sequence[Timing],
    steps: int,
    sync_norms: bool,
) -> Calibration:
    """Measure the parts. Call this on all processes; the result is the same on each.

    Args:
        apart: each process trains a network of its own.
        averaging: the same, with gradients prepared for an all-reduce that involves no other process.
        timings: of these two, in windows of the same rounds.
        steps: that are timed one by one.
        sync_norms: the run that is predicted synchronises its batch norms (`model.sync_batchnorm`); these two
            do not.
    """
    stopwatch = Stopwatch(apart.rig.processes.device)
    state = averaging.rig.state
    during, after = _messages(state, sync_norms)
    sizes = sorted({_LATENCY_BYTES, *filter(None, (during, *after))})
    batch = next(averaging.rig.synthetic().batches_from(0))
    return Calibration(
        rank_step_s=_gathered(_single_steps_s(apart, steps, stopwatch)),
        averaging_s=median(b - a for a, b in zip(*(timing.step_s for timing in timings), strict=True)),
        during=during,
        after=after,
        reduce_s={size: _reduce_s(size, stopwatch) for size in sizes},
        backward_s=_backward_after_s(state, batch, stopwatch) if during else 0.0,
    )


def _messages(state: TrainState, sync_norms: bool) -> tuple[int, tuple[int, ...]]:
    """Return the bytes that are reduced during the backward pass, and of each all-reduce outside of it."""
    assert state.gradient_mean is not None
    during, rest = state.gradient_mean.num_bytes
    norms = [module for module in state.model.modules() if isinstance(module, NormAct)] if sync_norms else []
    moments = [2 * norm.num_features * _MOMENT_BYTES for norm in norms]  # mean and mean square
    messages = (rest, *moments, *moments)  # in the forward pass, and their gradients in the backward pass
    return during, tuple(size for size in messages if size)


def _gathered(mine: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Return the values of all processes, in the order of their ranks."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, mine)
    return tuple(values)


def _single_steps_s(workload: StepWorkload, steps: int, stopwatch: Stopwatch) -> tuple[float, ...]:
    """Time steps one by one, without waiting between them."""
    workload.prepare()
    stopwatch.barrier()
    workload.run(workload.lead_in)
    marks = [_mark(stopwatch)]
    for _ in range(steps):
        workload.run(1)
        marks.append(_mark(stopwatch))
    stopwatch.synchronize()
    seconds = tuple(_seconds(a, b) for a, b in pairwise(marks))
    workload.finish(sum(seconds) / steps)
    return seconds


def _mark(stopwatch: Stopwatch) -> Any:
    """Note the time: of the work enqueued so far on a GPU, of the host on the CPU."""
    if stopwatch.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: Any, end: Any) -> float:
    """Return the seconds between two marks, which the device has reached."""
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3


def _reduce_s(num_bytes: int, stopwatch: Stopwatch) -> float:
    """Return the seconds of one of several all-reduces, one after the other; on a GPU captured, as in a
    step."""
    values = torch.zeros(-(-num_bytes // _GRADIENT_BYTES), device=stopwatch.device)

    def reduce() -> None:
        for _ in range(_REDUCTIONS):
            torch.distributed.all_reduce(values)

    reduce()
    replay = _captured(reduce) if stopwatch.device.type == "cuda" else reduce
    seconds = []
    for _ in range(_REPEATS):
        stopwatch.barrier()
        seconds.append(stopwatch.seconds(replay) / _REDUCTIONS)
    return median(seconds)


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    torch.cuda.synchronize()
    with new_graph() as graph:
        work()
    graph.replay()
    return graph.replay


def _backward_after_s(state: TrainState, batch: Batch, stopwatch: Stopwatch) -> float:
    """Return the seconds from the time when the gradients of the last stage are ready to the end of the
    backward pass, the median of a few eager passes."""
    assert isinstance(state.model, ResNet)
    last = [parameter for parameter in state.model.back_parameters() if parameter.requires_grad]
    ready: list[Any] = []
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda _: ready.append(_mark(stopwatch)))
        for parameter in last
    ]
    seconds = []
    for _ in range(_REPEATS):
        ready.clear()
        with state.precision.autocast():
            loss = F.cross_entropy(state.model(batch.images).float(), batch.labels)
        loss.backward()
        end = _mark(stopwatch)
        stopwatch.synchronize()
        seconds.append(_seconds(ready[-1], end))
        state.optimizer.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return median(seconds)
