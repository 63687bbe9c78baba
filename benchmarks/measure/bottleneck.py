"""One sentence that says what holds a run back, and which key of the config to change."""

from dataclasses import dataclass

from benchmarks.publish.records import Spread
from pipeline.config import Config
from pipeline.profiling.bottleneck import NOTICEABLE, loader_remedy

_HOST_BOUND = 0.9  # share of a step's time that the host spends enqueueing it
_ARITHMETIC_BOUND = 0.6  # share of the peak from which a step is limited by arithmetic


@dataclass(frozen=True)
class Measured:
    """What the sentence is made from.

    Attributes:
        loader, step, end_to_end: images per second, medians.
        ratio: throughput of end to end over the step's, of windows timed one right after the other.
        alone: of the step without the other processes; equal to `step` for one process.
        host_ms: time that the host takes to enqueue a step on a GPU; 0 on the CPU, where it computes the step.
        step_ms: time of a step.
        peak_share: of the GPU's arithmetic.
        compile_mode: resolved.
        on_gpu: where it ran.
        streamed: whether the images stay in their files.
    """

    loader: float
    step: float
    end_to_end: float
    ratio: Spread
    alone: float
    host_ms: float
    step_ms: float
    peak_share: float
    compile_mode: str
    on_gpu: bool
    streamed: bool


def name_bottleneck(m: Measured, config: Config) -> str:
    """The sentence."""
    # of one window nobody knows the spread
    if m.loader < m.step or (m.ratio.median < 1 - NOTICEABLE and m.ratio.p90 < 1 and m.ratio.n > 1):
        return _loader(m, config)
    if m.step < (1 - NOTICEABLE) * m.alone:
        lost = 1 - m.step / m.alone
        return (
            f"Bottleneck: communication between the processes, which takes {lost:.0%} of a step; raise data.batch_size "
            f"(now {config.data.batch_size} over all processes), so that there is more work between two exchanges."
        )
    if m.on_gpu and m.host_ms >= _HOST_BOUND * m.step_ms:
        if m.compile_mode in ("reduce-overhead", "max-autotune"):
            remedy = "raise data.batch_size"
        else:
            remedy = "set compile.mode=reduce-overhead, which replays the step as one CUDA graph"
        return f"Bottleneck: the host, which takes {m.host_ms:.2f} ms to enqueue a step of {m.step_ms:.2f} ms; {remedy}."
    if m.peak_share >= _ARITHMETIC_BOUND:
        return f"Bottleneck: arithmetic, at {m.peak_share:.0%} of what a large matrix product reaches; {_arithmetic(config, m.on_gpu)}."
    return (
        f"Bottleneck: memory traffic of the step (arithmetic is at {m.peak_share:.0%} of what a large matrix product reaches); "
        f"{_memory(m, config)}."
    )


def _loader(m: Measured, config: Config) -> str:
    if m.loader < m.step:
        finding = f"the loader, at {m.loader:,.0f} img/s where the step takes {m.step:,.0f}"
    else:
        alone = f"{m.loader:,.0f} img/s alone, but only {m.end_to_end:,.0f} of {m.step:,.0f} together"
        finding = f"the loader's competition with the step: {alone}"
    return f"Bottleneck: {finding}; {loader_remedy(config, m.on_gpu, m.streamed)}."


def _arithmetic(config: Config, on_gpu: bool) -> str:
    if on_gpu and config.precision.mode == "fp32":
        return "set precision.mode=fp16"
    return f"a smaller model.name (now {config.model.name}) is all that would be faster"


def _memory(m: Measured, config: Config) -> str:
    if m.on_gpu and config.precision.mode == "fp32":
        return "set precision.mode=fp16, which halves it"
    if not config.runtime.channels_last:
        return "set runtime.channels_last=true"
    if m.on_gpu and m.compile_mode == "none":
        return "set compile.mode=reduce-overhead, which fuses the element-wise operations"
    return f"raise data.batch_size (now {config.data.batch_size}) if that raises images/sec, or choose a smaller model.name"
