"""One sentence that says what held a run back, and which key of the config to change."""

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config

NOTICEABLE = 0.03  # share of the time, or of throughput, below which two figures count as the same


def loader_remedy(config: Config, on_gpu: bool, streamed: bool | None = None) -> str:
    """What to change where the loader is too slow.

    Args:
        config: of the run.
        on_gpu: where it ran.
        streamed: whether its images stay in their files; None: not known, but to be guessed.
    """
    data = config.data
    if streamed is None:
        streamed = config.probably_streamed
    if data.loader == "reference":
        return "set data.loader=dali"
    threads = f"raise data.num_threads (now {data.num_threads}) and data.prefetch (now {data.prefetch})"
    if not on_gpu or data.loader != "dali":
        return threads
    if streamed:
        return f"{threads}, or try data.decoder={'cpu' if data.decoder == 'gpu' else 'gpu'}"
    return f"set data.loader=fused, or {threads}"


def bottleneck_of_run(result: Mapping[str, Any], config: Config) -> str:
    """The sentence, from what a run has measured in passing.

    Args:
        result: the run's result.json.
        config: the run's config.
    """
    waited, on_gpu = result.get("data_wait_fraction"), result.get("device") == "cuda"
    if waited is None:
        return "Speed: not measured; no window between two log points held steady steps only. Train longer, or lower log.log_every."
    waiter = "the GPU" if on_gpu else "the training process"
    if waited >= NOTICEABLE:
        wait = f"{waiter} waited for its next batch {100 * waited:.0f} % of the time"
        return f"Bottleneck: the loader; {wait}: {loader_remedy(config, on_gpu)}."
    step = f"Bottleneck: the step itself; {waiter} waited for data only {100 * waited:.1f} % of the time"
    if on_gpu and config.precision.mode == "fp32":
        return f"{step}: set precision.mode=fp16 or bf16."
    if on_gpu and config.compile.mode == "none":
        return f"{step}: set compile.mode=reduce-overhead."
    return f"{step}. `./launch.sh bench` with the same recipe tells arithmetic, memory traffic and the host apart."
