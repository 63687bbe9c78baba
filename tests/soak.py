"""Train many short epochs and watch the process from outside: memory, open files and threads must not grow.

    python -m tests.soak                                                 # 1,000 epochs of 5 steps, on the CPU too
    python -m tests.soak configs/cifar10_resnet18.yaml --minutes 8 log.eval_every=100st

The run is the real command in a process of its own. What it holds is read from /proc, and the memory of its GPU from nvidia-smi, twice
a second. After a first fifth, in which caches fill, a line is fitted through each by least squares: flat is what grows by less than its
limit over a thousand epochs, or over the rest of the run if that is longer.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure.options import merge
from pipeline.errors import EXIT_FAILURE, EXIT_PREEMPTED, TrainingError

_QUICKSTART = Path(__file__).parents[1] / "configs/quickstart.yaml"
_EVERY_S = 0.5
_WARM_UP = 0.2  # share of the samples that are left out
_MIN_SAMPLES = 20
_AT_LEAST = 1000  # epochs
# what each may grow by: the log of a thousand epochs is kept in memory for the report, and heaps breathe
LIMITS = {"memory_mib": 16.0, "gpu_memory_mib": 8.0, "open_files": 0.5, "threads": 0.5}
_SMALL = (
    *(
        "data.dataset=synthetic",
        "data.num_samples=40",
        "data.image_size=8",
        "data.batch_size=8",
        "data.eval_batch_size=8",
    ),
    *(
        "model.name=resnet20",
        "model.shortcut=A",
        "augment.crop_padding=1",
        "augment.cutout=2",
        "data.num_threads=1",
    ),
    *("log.explain=false", "log.report=false", "log.log_every=5st", "log.checkpoint_every=5ep"),
)


@dataclass(frozen=True)
class Growth:
    """A line through what one resource did.

    Attributes:
        name: a key of `LIMITS`.
        first, last: of the line, after warm-up and at the end.
        highest: of all samples.
        per_1000_epochs: its slope.
        flat: whether it grew by less than its limit.
    """

    name: str
    first: float
    last: float
    highest: float
    per_1000_epochs: float
    flat: bool


def measure_growth(samples: Sequence[dict[str, float]]) -> list[Growth]:
    """Fit a line through each resource over the epochs, without warm-up.

    Args:
        samples: each with `epoch` and some of the keys of `LIMITS`, in order.

    Raises:
        TrainingError: too few samples for a line.
    """
    kept = samples[int(len(samples) * _WARM_UP) :]
    if len(kept) < _MIN_SAMPLES or kept[-1]["epoch"] <= kept[0]["epoch"]:
        raise TrainingError(
            f"{len(samples)} samples are too few to tell growth from noise; run more epochs (--epochs)"
        )
    epochs = np.array([sample["epoch"] for sample in kept])
    found = []
    for name, limit in LIMITS.items():
        if name in kept[0]:
            values = np.array([sample[name] for sample in kept])
            slope, start = np.polyfit(epochs, values, 1)
            first, last = (float(start + slope * epochs[end]) for end in (0, -1))
            growth = slope * max(epochs[-1] - epochs[0], _AT_LEAST)
            found.append(
                Growth(name, first, last, float(values.max()), float(slope * 1000), bool(growth <= limit))
            )
    return found


def _sample(pid: int, gpu: bool) -> dict[str, float] | None:
    """What the process holds now; None where it has ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        held = {
            "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
            "open_files": float(len(os.listdir(f"/proc/{pid}/fd"))),
            "threads": float(status["Threads"]),
        }
    except (OSError, KeyError):
        return None
    if gpu:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[
            0
        ]  # the one that a single process takes
        query = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        held["gpu_memory_mib"] = float(
            subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        )
    return held


def _progress(runs: Path) -> float | None:
    """Epochs that the run has trained, by the last line of its log; None before the first and after the last."""
    try:
        run = next(path for path in runs.iterdir() if not path.is_symlink())
        return (
            None
            if (run / "result.json").exists()
            else json.loads((run / "metrics.jsonl").read_bytes().splitlines()[-1])["epoch"]
        )
    except (StopIteration, IndexError, ValueError, OSError):
        return None


def soak(recipe: str, overrides: Sequence[str], minutes: float | None = None) -> list[dict[str, float]]:
    """Train, and watch; the samples.

    Args:
        recipe, overrides: of the run.
        minutes: after which the run is asked to stop; None: to its end.

    Raises:
        TrainingError: the run failed; tells what it said.
    """
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        runs, log = Path(folder) / "runs", Path(folder) / "log"
        command = [sys.executable, "-m", "pipeline.train", recipe, *overrides, f"log.dir={runs}"]
        began, gpu, asked = time.perf_counter(), shutil.which("nvidia-smi") is not None, False
        with (
            log.open("w") as output,
            subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
        ):
            while process.poll() is None:
                time.sleep(_EVERY_S)
                epoch, held = _progress(runs), _sample(process.pid, gpu)
                if epoch is not None and held is not None and not asked:
                    samples.append({"epoch": epoch, "seconds": time.perf_counter() - began, **held})
                if minutes is not None and not asked and time.perf_counter() - began > 60 * minutes:
                    asked = True
                    process.terminate()
        if process.returncode != (EXIT_PREEMPTED if asked else 0):
            raise TrainingError(
                "\n".join(
                    [
                        f"the run failed with exit code {process.returncode}:",
                        *log.read_text().splitlines()[-5:],
                    ]
                )
            )
    return samples


def print_growth(found: Sequence[Growth], samples: Sequence[dict[str, float]]) -> None:
    """A line for each resource."""
    print(f"{samples[-1]['epoch']:g} epochs in {samples[-1]['seconds']:.0f} s, {len(samples)} samples")
    for one in found:
        line = f"{one.first:10,.1f} to {one.last:10,.1f}, highest {one.highest:10,.1f}, {one.per_1000_epochs:+9.2f} per 1,000 epochs"
        print(f"{one.name:16}{line}  {'flat' if one.flat else 'GROWS'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, report, and return 1 where something grows."""
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
        arguments.json.write_text(json.dumps(samples))
    found = measure_growth(samples)
    print_growth(found, samples)
    return 0 if all(one.flat for one in found) else EXIT_FAILURE
