"""Names the bottleneck of a config in one sentence, with the key to change."""

from dataclasses import dataclass

from benchmarks.publish.records import Spread
from pipeline.config import Config
from pipeline.profiling.bottleneck import NOTICEABLE, loader_remedy

_HOST_BOUND = 0.9  # fraction of a step's time that the host spends enqueueing it
_ARITHMETIC_BOUND = 0.6  # fraction of the peak from which arithmetic limits a step


@dataclass(frozen=True)
class Measured:
    """The figures that name the bottleneck.

    Attributes:
        loader, step, end_to_end: images per second, medians.
        ratio: throughput of end to end over that of the step, of windows timed one right after the other.
        alone: images per second of the step without the other processes; equal to `step` for one process.
        host_ms: time that the host takes to enqueue a step on a GPU; 0 on the CPU, where it computes the
            step.
        step_ms: time of a step.
        peak_share: achieved arithmetic over the rate of a large matrix product.
        compile_mode: resolved.
        on_gpu: True if the step ran on a GPU.
        streamed: True if the images stay in their files.
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
    """Return the sentence."""
    return f"Bottleneck: {_describe(m, config)}."


def _describe(m: Measured, config: Config) -> str:
    if _loader_limits(m):
        return f"{_loader(m)}; {loader_remedy(config, m.on_gpu, m.streamed)}"
    if m.step < (1 - NOTICEABLE) * m.alone:
        return _communication(m, config)
    if m.on_gpu and m.host_ms >= _HOST_BOUND * m.step_ms:
        return _host(m)
    peak = "of the rate of a large matrix product"
    if m.peak_share >= _ARITHMETIC_BOUND:
        return f"arithmetic, at {m.peak_share:.0%} {peak}; {_arithmetic(m, config)}"
    return f"memory traffic of the step (arithmetic is at {m.peak_share:.0%} {peak}); {_memory(m, config)}"


def _loader_limits(m: Measured) -> bool:
    # one window has no spread: a low ratio may be noise
    slows_the_step = m.ratio.n > 1 and m.ratio.median < 1 - NOTICEABLE and m.ratio.p90 < 1
    return m.loader < m.step or slows_the_step


def _loader(m: Measured) -> str:
    if m.loader < m.step:
        return f"the loader, at {m.loader:,.0f} img/s while the step can take {m.step:,.0f}"
    together = f"{m.end_to_end:,.0f} img/s together instead of the step's {m.step:,.0f}"
    return f"the loader's competition with the step: {m.loader:,.0f} img/s alone, but {together}"


def _communication(m: Measured, config: Config) -> str:
    lost = 1 - m.step / m.alone
    return (
        f"communication between the processes, which takes {lost:.0%} of a step; raise data.batch_size (now "
        f"{config.data.batch_size} over all processes), so that there is more work between two exchanges"
    )


def _host(m: Measured) -> str:
    if m.compile_mode in ("graph", "reduce-overhead", "max-autotune"):
        remedy = "raise data.batch_size"
    else:
        remedy = "set compile.mode=reduce-overhead, which replays the step as one CUDA graph"
    return f"the host, which takes {m.host_ms:.2f} ms to enqueue a step of {m.step_ms:.2f} ms; {remedy}"


def _arithmetic(m: Measured, config: Config) -> str:
    if m.on_gpu and config.precision.mode == "fp32":
        return "set precision.mode=fp16"
    return f"only a smaller model.name (now {config.model.name}) would be faster"


def _memory(m: Measured, config: Config) -> str:
    if m.on_gpu and config.precision.mode == "fp32":
        return "set precision.mode=fp16, which halves it"
    if not config.runtime.channels_last:
        return "set runtime.channels_last=true"
    if m.on_gpu and m.compile_mode in ("none", "graph"):
        return "set compile.mode=reduce-overhead, which fuses the element-wise operations"
    return (
        f"raise data.batch_size (now {config.data.batch_size}) if that raises images/sec, or choose a "
        "smaller model.name"
    )
