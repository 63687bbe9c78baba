"""Names the bottleneck of a run in one sentence, with the key of the config to change."""

from pipeline.config import Config, FileData
from pipeline.run.records import RunResult

NOTICEABLE = 0.03  # fraction of the time, or of throughput; smaller differences count as none


def loader_remedy(config: Config, on_gpu: bool, streamed: bool | None = None) -> str:
    """Return what to change if the loader is too slow.

    Args:
        config: of the run.
        on_gpu: True if it ran on a GPU.
        streamed: True if its images stay in their files; None: not known, so it is guessed.
    """
    data = config.data
    if streamed is None:
        streamed = config.probably_streamed
    if data.loader == "reference":
        return "set data.loader=dali"
    threads = f"raise data.num_threads (now {data.num_threads}) and data.prefetch (now {data.prefetch})"
    if not on_gpu or data.loader != "dali":
        return threads
    if streamed and isinstance(data, FileData):
        if data.decoder == "auto":
            return f"{threads}, or set data.decoder: `./launch.sh bench decoders` measures which is best"
        return f"{threads}, or try data.decoder={'cpu' if data.decoder == 'gpu' else 'gpu'}"
    return f"set data.loader=fused, or {threads}"


def bottleneck_of_run(result: RunResult, config: Config) -> str:
    """Return the sentence, from the figures that every run measures.

    Args:
        result: the run's result.json.
        config: the run's config.
    """
    waited, on_gpu = result.data_wait_fraction, result.device == "cuda"
    if waited is None:
        return (
            "Speed: not measured; every window between two log points held other work than steady steps. "
            "Train longer, or lower log.log_every."
        )
    waiter = "the GPU" if on_gpu else "the training process"
    if waited >= NOTICEABLE:
        wait = f"{waiter} waited for its next batch {100 * waited:.0f} % of the time"
        return f"Bottleneck: the loader; {wait}: {loader_remedy(config, on_gpu)}."
    step = f"Bottleneck: the step itself; {waiter} waited for data only {100 * waited:.1f} % of the time"
    if on_gpu and config.precision.mode == "fp32":
        return f"{step}: set precision.mode=fp16 or bf16."
    if on_gpu and config.compile.mode == "none":
        return f"{step}: set compile.mode=reduce-overhead."
    return f"{step}. `./launch.sh bench` with the same recipe separates arithmetic, memory traffic and host."
