"""Runs timm's training script, `train.py` of github.com/huggingface/pytorch-image-models."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure.machine import hash_of_folder
from benchmarks.peers.folder_program import PYTHON, LineLog, LogPatterns, Program, RunLog
from benchmarks.peers.task import Task

_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
_LOG = LogPatterns(
    step=re.compile(r"^Train: \d+ \[ *(?P<step>\d+)/\d+"),
    evaluated=re.compile(r"^Test: \[ *(?P<last>\d+)/(?P=last)\].*Acc@1: +[\d.]+ \( *(?P<top1>[\d.]+)\)"),
    parameters=re.compile(r"param count: ?(?P<parameters>\d+)"),
)


class TimmTrain(Program):
    """The script with its fastest settings: half precision, channels_last, torch.compile, pinned memory."""

    name = "timm"
    log_options = ("--log-interval", "1")

    def command(self, task: Task, seed: int, output: Path) -> list[str]:
        size, optimizer, augment = task.config.image_size, task.optimizer, task.config.augment
        scale = () if self._crops_alike(task) else ("--scale", *(f"{part:g}" for part in augment.crop_scale))
        return [
            *(PYTHON, "train.py", "--data-dir", str(task.data), "--model", task.network),
            *("--num-classes", str(task.counts.num_classes), "--img-size", str(size)),
            *("--batch-size", str(task.batch_size), "--epochs", str(task.epochs - task.warmup_epochs)),
            *("--workers", str(task.workers), "--output", str(output), "--experiment", "run"),
            *("--opt", "sgd" if optimizer.nesterov else "momentum", "--lr", f"{optimizer.lr:g}"),
            *("--momentum", f"{optimizer.momentum:g}", "--weight-decay", f"{optimizer.weight_decay:g}"),
            *(("--model-kwargs", "zero_init_last=False") if self._starts_otherwise(task) else ()),
            *self._schedule(task),
            *("--smoothing", f"{task.config.loss.label_smoothing:g}", "--color-jitter", "0", *scale),
            *("--interpolation", "bilinear", "--train-interpolation", "bilinear"),
            *("--crop-pct", f"{task.eval_crop:g}", "--seed", str(seed), "--pin-mem"),
            *(() if augment.flip else ("--hflip", "0")),
            *(("--amp", "--amp-dtype", _DTYPES[self.precision(task)]) if task.is_half else ()),
            *(("--channels-last",) if self.channels_last(task) else ()),
            *(("--torchcompile",) if task.compiles else ()),
            *(("--device", "cpu") if task.device == "cpu" else ()),
            *self.log_options,
            *self.extra,
        ]

    def _schedule(self, task: Task) -> Iterator[str]:
        """Yield the schedule's options. With `--warmup-prefix` the epochs of warm-up come before the others,
        and the cosine begins after them, as it does here."""
        rate = task.optimizer.lr
        yield from ("--sched", "cosine", "--sched-on-updates", "--warmup-epochs", str(task.warmup_epochs))
        if task.warmup_epochs:
            yield from ("--warmup-prefix", "--warmup-lr", f"{task.config.schedule.start_fraction * rate:g}")
        if task.final_fraction:
            yield from ("--min-lr", f"{task.final_fraction * rate:g}")

    def _starts_otherwise(self, task: Task) -> bool:
        """Return True if blocks do not start as identities; by default those of its ResNets do."""
        return task.is_resnet and not task.starts_as_identities

    def _crops_alike(self, task: Task) -> bool:
        """Return True if the default crops are ours, or as near to ours as its crops come."""
        return task.config.augment.crop_scale == (0.08, 1.0) or not task.config.probably_streamed

    def new_log(self, task: Task) -> RunLog:
        return LineLog(_LOG, task)

    def images_per_epoch(self, task: Task) -> int:
        return task.full_steps * task.batch_size

    def differences(self, task: Task) -> Iterator[str]:
        yield from task.differences()
        if task.optimizer.decay_norm_and_bias:
            yield "no weight decay on norms and biases"
        if task.eval_size != task.config.image_size:
            yield f"evaluates at {task.config.image_size} pixels"

    def precision(self, task: Task) -> str:
        return task.config.precision.mode

    def channels_last(self, task: Task) -> bool:
        return task.config.runtime.channels_last

    def compile_mode(self, task: Task) -> str:
        return "default" if task.compiles else "none"

    def versions(self) -> dict[str, str]:
        own = self.folder / "timm/version.py"  # a folder beside the script is imported, not the package
        match = re.search(r"'([^']+)'", own.read_text("utf-8")) if own.is_file() else None
        return {"timm": match[1] if match else version("timm")}

    def source_hash(self) -> str:
        return hash_of_folder(self.folder, "train.py", "timm/**/*.py")
