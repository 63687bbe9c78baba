"""Trains many short epochs and watches the process: memory, open files and threads must not grow.

    python -m tests.soak                                                 # 1,000 epochs of 5 steps, on the CPU
    python -m tests.soak configs/cifar10_resnet18.yaml --minutes 8 log.eval_every=100st

The run is the real command in a new process. Its resources are read from /proc, and the memory of its GPU
from nvidia-smi, twice a second. The first fifth is left out, because caches fill in it. A line is fitted
through the rest by least squares. A resource is flat if it grows by less than its limit over a thousand
epochs, or over the rest of the run if that is longer.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure.options import merge
from pipeline.errors import EXIT_FAILURE, EXIT_PREEMPTED, TrainingError
from tests.python import ROOT

_QUICKSTART = ROOT / "configs/quickstart.yaml"
_EVERY_S = 0.5
_WARM_UP = 0.2  # fraction of the samples that is left out
_MIN_SAMPLES = 20
_MIN_EPOCHS = 1000  # that a growth is extended to
# Limits of growth. A thousand epochs of log lines are kept in memory for the report, and the size of a heap
# varies.
LIMITS = {"memory_mib": 16.0, "gpu_memory_mib": 8.0, "open_files": 0.5, "threads": 0.5}
_SMALL = (
    "data.dataset=synthetic",
    "data.num_samples=40",
    "data.image_size=8",
    "data.batch_size=8",
    "data.eval_batch_size=8",
    "data.num_threads=1",
    "model.name=resnet20",
    "model.shortcut=A",
    "augment.crop_padding=1",
    "augment.cutout=2",
    "log.explain=false",
    "log.report=false",
    "log.log_every=5st",
    "log.checkpoint_every=5ep",
)


@dataclass(frozen=True)
class Sample:
    """Resources of the process at one time; `gpu_memory_mib` is None without a GPU."""

    epoch: float
    seconds: float
    memory_mib: float
    open_files: float
    threads: float
    gpu_memory_mib: float | None = None

    def as_json(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Growth:
    """A line fitted through one resource.

    Attributes:
        name: a key of `LIMITS`.
        first, last: values of the line, after warm-up and at the end.
        highest: of all samples.
        per_1000_epochs: slope of the line.
        flat: True if the resource grew by less than its limit.
    """

    name: str
    first: float
    last: float
    highest: float
    per_1000_epochs: float
    flat: bool


def measure_growth(samples: Sequence[Sample]) -> list[Growth]:
    """Fit a line through each resource over the epochs, without warm-up.

    Args:
        samples: in the order of their time.

    Raises:
        TrainingError: the samples are too few for a line.
    """
    steady = samples[int(len(samples) * _WARM_UP) :]
    if len(steady) < _MIN_SAMPLES or steady[-1].epoch <= steady[0].epoch:
        raise TrainingError(
            f"{len(samples)} samples are too few to tell growth from noise; run more epochs (--epochs)"
        )
    epochs = np.array([sample.epoch for sample in steady])
    return [
        _fit(name, epochs, np.array([getattr(sample, name) for sample in steady]))
        for name in LIMITS
        if getattr(steady[0], name) is not None
    ]


def _fit(name: str, epochs: np.ndarray, values: np.ndarray) -> Growth:
    slope, start = np.polyfit(epochs, values, 1)
    growth = slope * max(epochs[-1] - epochs[0], _MIN_EPOCHS)
    return Growth(
        name,
        first=float(start + slope * epochs[0]),
        last=float(start + slope * epochs[-1]),
        highest=float(values.max()),
        per_1000_epochs=float(slope * 1000),
        flat=bool(growth <= LIMITS[name]),
    )


def soak(recipe: str, overrides: Sequence[str], minutes: float | None = None) -> list[Sample]:
    """Train, watch, and return the samples.

    Args:
        recipe, overrides: of the run.
        minutes: after which the run is asked to stop; None: to its end.

    Raises:
        TrainingError: the run failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        runs, log = Path(folder) / "runs", Path(folder) / "log"
        command = [sys.executable, "-m", "pipeline.train", recipe, *overrides, f"log.dir={runs}"]
        with (
            log.open("w") as output,
            subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
        ):
            samples, stopped = _watch(process, runs, 60 * minutes if minutes is not None else None)
        if process.returncode != (EXIT_PREEMPTED if stopped else 0):
            failure = f"the run failed with exit code {process.returncode}:"
            raise TrainingError("\n".join([failure, *log.read_text().splitlines()[-5:]]))
    return samples


def _watch(process: subprocess.Popen[bytes], runs: Path, seconds: float | None) -> tuple[list[Sample], bool]:
    """Return the samples of a process, and True if it was asked to stop after `seconds`."""
    samples: list[Sample] = []
    began, gpu, stopped = time.perf_counter(), shutil.which("nvidia-smi") is not None, False
    while process.poll() is None:
        time.sleep(_EVERY_S)
        epoch = _epochs_trained(runs)
        if epoch is not None and not stopped:
            sample = _sample(process.pid, epoch, time.perf_counter() - began, gpu)
            samples += [sample] if sample is not None else []
        if seconds is not None and not stopped and time.perf_counter() - began > seconds:
            stopped = True
            process.terminate()
    return samples, stopped


def _sample(pid: int, epoch: float, seconds: float, gpu: bool) -> Sample | None:
    """Return the present resources of the process; None if it has ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return Sample(
            epoch,
            seconds,
            memory_mib=int(status["VmRSS"].split()[0]) / 1024,
            open_files=float(len(os.listdir(f"/proc/{pid}/fd"))),
            threads=float(status["Threads"]),
            gpu_memory_mib=_gpu_memory_mib() if gpu else None,
        )
    except (OSError, KeyError):
        return None


def _gpu_memory_mib() -> float:
    """Return the memory in use on the first visible GPU, the one that a single process takes."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def _epochs_trained(runs: Path) -> float | None:
    """Return the epochs by the last line of the run's log; None before the first line and after the end."""
    try:
        run = next(path for path in runs.iterdir() if not path.is_symlink())
        if (run / "result.json").exists():
            return None
        return json.loads((run / "metrics.jsonl").read_bytes().splitlines()[-1])["epoch"]
    except (StopIteration, IndexError, ValueError, OSError):
        return None


def print_growth(growths: Sequence[Growth], samples: Sequence[Sample]) -> None:
    """Print a line for each resource."""
    print(f"{samples[-1].epoch:g} epochs in {samples[-1].seconds:.0f} s, {len(samples)} samples")
    for growth in growths:
        span = f"{growth.first:10,.1f} to {growth.last:10,.1f}, highest {growth.highest:10,.1f}"
        slope = f"{growth.per_1000_epochs:+9.2f} per 1,000 epochs"
        print(f"{growth.name:16}{span}, {slope}  {'flat' if growth.flat else 'GROWS'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, report, and return 1 if a resource grows."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("config", nargs="?", help="recipe (default: a tiny network on tiny synthetic images)")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="keys put over the recipe"
    )
    parser.add_argument("--epochs", type=int, default=1000, help="length of the run (default: 1000)")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples")
    arguments = parser.parse_intermixed_args(argv)
    recipe, overrides = arguments.config, list(arguments.overrides)
    if recipe is None or "=" in recipe:
        overrides = [*([recipe] if recipe else []), *overrides]
        recipe, overrides = str(_QUICKSTART), merge(_SMALL, overrides)
    samples = soak(recipe, merge((f"duration={arguments.epochs}ep",), overrides), arguments.minutes)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([sample.as_json() for sample in samples]))
    growths = measure_growth(samples)
    print_growth(growths, samples)
    return 0 if all(growth.flat for growth in growths) else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
