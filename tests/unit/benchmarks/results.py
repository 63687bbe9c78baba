"""Makes results of runs, timed runs, and records of every benchmark, for tests."""

from typing import Any

from benchmarks.publish.kernel_kinds import KernelKind
from benchmarks.publish.peer_runs import PeerEpoch, PeerRun, PeerRuns
from benchmarks.publish.records import Baseline, Record, Spread
from benchmarks.publish.whole_runs import GpuState, KernelTime, TimedRun, WholeRuns
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


def record(benchmark: str = "loader", variant: str = "dali", rate: float = 1000.0, **more: Any) -> Record:
    values: dict[str, Any] = {
        "benchmark": benchmark,
        "variant": variant,
        "model": "resnet18",
        "image_size": 32,
        "dataset": "cifar10",
        "loader": variant,
        "augment": "crop 4, flip",
        "batch_size": 512,
        "world_size": 1,
        "precision": "fp16",
        "channels_last": True,
        "compile_mode": "none",
        "images_per_sec": Spread(median=rate, p10=0.9 * rate, p90=1.1 * rate, n=5),
        "step_ms": 512e3 / rate,
        "peak_memory_bytes": 2**30,
        "config": {"seed": 0},
        "config_hash": "0" * 12,
        "commit": "f" * 40,
        "dirty": False,
        "gpu": "NVIDIA H200",
        "gpu_count": 1,
        "power_limit_w": 700.0,
        "driver": "580.1",
        "cuda": "13.0",
        "torch": "2.11.0",
        "dali": "2.4.0",
        "python": "3.12.1",
        "cpu_cores": 16,
        "utc": "2026-01-01T00:00:00+00:00",
        "command": "python -m benchmarks loaders --record",
    }
    return Record(**(values | more))


def peer_records(data: str = "photos", ours: float = 8000.0, planned: int = 2, **more: Any) -> list[Record]:
    """Two runs of each program: timm has a third of our speed, and torchvision a fourth."""
    shared = {
        "model": "resnet50",
        "dataset": "folder",
        "data": data,
        "epochs": 3.0,
        "image_size": 224,
        **more,
    }
    records = []
    for name, factor in (("torchvision", 4), ("quickres", 1), ("timm", 3)):
        is_ours, rate = name == "quickres", ours / factor
        ratio = Spread(median=1 / factor, p10=1 / factor, p90=1 / factor, n=2)
        baseline = None if is_ours else Baseline(variant="quickres", images_per_sec=ours, ratio=ratio)
        runs = make_peer_runs(
            *[make_peer_run(0.9, rate)] * 2, planned=planned, step_rate=1.25 * ours if is_ours else None
        )
        records.append(record("peers", name, rate, baseline=baseline, peer_runs=runs, **shared))
    return records


EXAMPLES = [
    *(
        record(variant=name, batch_size=size, rate=rate * size)
        for name, rate in (("dali", 300.0), ("airbench", 4000.0))
        for size in (256, 512, 1024)
    ),
    record("step", "step", 9e4, tflops=300.0, peak_share=0.38, compile_s=12.3),
    record("end_to_end", "synthetic", 9e4),
    record(
        "end_to_end",
        "dali",
        8.9e4,
        baseline=Baseline(
            variant="synthetic", images_per_sec=9e4, ratio=Spread(median=0.99, p10=0.98, p90=1.0, n=5)
        ),
    ),
    record("peer", "pytorch-cifar", 1.8e4),
    record("kernel", "augment", 4e7, model=None, loader=None),
    record("ablation", "plain", 8e3, accuracy=0.9, accuracy_std=0.01, accuracy_n=3, epochs=5.0),
    record("ablation", "+ TF32", 2e4, epochs_to_pay=None),
    record("ablation", "+ torch.compile", 1.5e4, compile_s=20.0),
    record(
        "startup",
        "cold compile cache",
        images_per_sec=None,
        step_ms=None,
        first_step_s=21.0,
        first_step_n=5,
        whole_s=33.1,
        timeline={"imports": 4.1, "exit": 0.3},
    ),
    record("neighbour", "beside a busy process", 600.0),
    record("saving", "a checkpoint an epoch", 8.9e4),
    record(
        "time_to_accuracy",
        "cifar10_davidnet",
        images_per_sec=None,
        step_ms=None,
        whole_runs=make_whole_runs(),
    ),
    record("scaling", "one process", 1e5, loader="dali"),
    *(
        record(
            "scaling",
            "weak",
            speed_up * 1e5,
            loader="dali",
            batch_size=512 * size,
            world_size=size,
            baseline=Baseline(
                variant="one process",
                images_per_sec=1e5,
                ratio=Spread(median=speed_up, p10=0.99 * speed_up, p90=speed_up, n=3),
            ),
        )
        for size, speed_up in ((2, 1.96), (8, 7.6))
    ),
    *(
        record(
            "end_to_end",
            name,
            rate,
            image_size=224,
            model="resnet50, fused norm",
            config={"data": {"decoder": "cpu", "num_threads": 14}},
        )
        for name, rate in (("synthetic", 8.7e3), ("dali", 8.6e3), ("torchvision", 1.7e3))
    ),
    record(
        "recipe",
        "cifar10_resnet18",
        8e4,
        data="CIFAR-10",
        accuracy=0.95,
        accuracy_std=0.001,
        accuracy_n=5,
        epochs=20.0,
        train_s=12.1,
    ),
    record("decoder", "cpu, 8 cores", 9e3, data="Imagenette 224", data_wait_fraction=0.1),
    record(
        "kernels_by_share",
        "dali",
        8e3,
        kernels=(
            KernelKind(
                kind="pool",
                microseconds=1234.0,
                fraction=0.1,
                launches=2,
                largest=(KernelTime(name="max_pool", microseconds=1000.0, fraction=0.08, launches=1),),
            ),
        ),
    ),
    record(variant="torchvision", gpu=None, gpu_count=0, power_limit_w=None, driver=None, cuda=None),
    *peer_records(),
]
