"""Makes results of runs, and timed runs, for tests."""

from typing import Any

from benchmarks.publish.peer_runs import PeerEpoch, PeerRun, PeerRuns
from benchmarks.publish.whole_runs import GpuState, TimedRun, WholeRuns
from pipeline.run.records import RunResult

_RESULT: dict[str, Any] = {
    "test_loss": 0.3,
    "test_accuracy": 0.9,
    "test_correct": 9000,
    "test_seen": 10_000,
    "best_test_accuracy": 0.9,
    "best_step": 100,
    "best_selected_on": "test",
    "train_loss": 0.2,
    "num_parameters": 269_722,
    "steps": 100,
    "epochs": 160.0,
    "images_per_sec": {"median": 1000.0, "p10": 900.0, "p90": 1100.0, "n": 9},
    "step_ms": 3.2,
    "data_wait_fraction": 0.0,
    "first_step_s": 10.0,
    "compile_s": 6.0,
    "train_s": 206.0,
    "wall_s": 220.0,
    "peak_memory_bytes": 2**28,
    "skipped_steps": 0,
    "recompilations": 0,
    "loader": "dali",
    "device": "cuda",
    "world_size": 1,
    "precision": "fp16",
    "batch_size": 128,
    "seed": 0,
}


def make_result(**changes: Any) -> RunResult:
    """Return the result of a finished run with these changes."""
    return RunResult.model_validate(_RESULT | changes)


def make_whole_runs(planned: int = 2) -> WholeRuns:
    """Return two runs of a second and of two seconds, with a mean accuracy of 90.5 %."""
    state = GpuState(sm_mhz=1980.0)
    return WholeRuns(
        figure="one view",
        target=0.94,
        p=0.99,
        runs=tuple(
            TimedRun(seed=seed, seconds=1 + seed, accuracies={"one view": 0.9 + seed / 100})
            for seed in (0, 1)
        ),
        planned=planned,
        wait_s=40.0,
        compiled=12,
        source_hash="0" * 16,
        gpu_before=state,
        gpu_after=state,
    )


def make_peer_run(accuracy: float = 0.9, rate: float = 1000.0, epochs: int = 3) -> PeerRun:
    """Return a run of epochs of 10 s each, the first of which reaches half of the accuracy."""
    accuracies = [accuracy / 2, *[accuracy] * (epochs - 1)]
    return PeerRun(
        seed=0,
        command="python train.py --lr 0.1",
        wall_s=10.0 * epochs + 5,
        cpu_s=70.0,
        peak_memory_bytes=2**30,
        epochs=tuple(
            PeerEpoch(
                accuracy=value, evaluated_s=10.0 * (number + 1), images_per_sec=rate if number else None
            )
            for number, value in enumerate(accuracies)
        ),
    )


def make_peer_runs(*runs: PeerRun, **changes: Any) -> PeerRuns:
    """Return these runs, or one run, of a program with a checkout, all that were planned."""
    runs = runs or (make_peer_run(),)
    values: dict[str, Any] = {
        "runs": runs,
        "planned": len(runs),
        "images_per_epoch": 5000,
        "target": 0.8,
        "words": 4,
        "settings": 1,
        "commit": "c" * 40,
        "source_hash": "0" * 16,
        "versions": {"timm": "1.0"},
        "has_same_network": True,
        "differences": ("NCHW",),
    }
    return PeerRuns(**values | changes)
