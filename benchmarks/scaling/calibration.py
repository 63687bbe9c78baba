"""Measures, on two processes, the parts of a step that the prediction of `scaling_model.py` needs."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from benchmarks.measure.timing import Stopwatch, Timing
from benchmarks.measure.workloads import StepWorkload
from benchmarks.scaling.scaling_model import Calibration
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
    messages = _messages(averaging.rig.state, sync_norms)
    return Calibration(
        rank_step_s=_gathered(_single_steps_s(apart, steps, stopwatch)),
        averaging_s=median(b - a for a, b in zip(*(timing.step_s for timing in timings), strict=True)),
        messages=messages,
        reduce_s={size: _reduce_s(size, stopwatch) for size in sorted({_LATENCY_BYTES, *messages})},
    )


def _messages(state: TrainState, sync_norms: bool) -> tuple[int, ...]:
    """Return the bytes of each all-reduce of a step."""
    assert state.gradient_mean is not None
    norms = [module for module in state.model.modules() if isinstance(module, NormAct)] if sync_norms else []
    moments = [2 * norm.num_features * _MOMENT_BYTES for norm in norms]  # mean and mean square
    # in the forward pass, and their gradients in the backward pass
    return (state.gradient_mean.num_bytes, *moments, *moments)


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
