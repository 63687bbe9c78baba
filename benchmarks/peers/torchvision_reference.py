"""Runs torchvision's reference script, `references/classification/train.py` of github.com/pytorch/vision."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure.machine import hash_of_folder
from benchmarks.peers.folder_program import PYTHON, LineLog, LogPatterns, Program, RunLog
from benchmarks.peers.task import Task
from pipeline.errors import UserError

_LOG = LogPatterns(
    step=re.compile(r"^Epoch: \[\d+\] +\[ *(?P<step>\d+)/\d+\]"),
    evaluated=re.compile(r"^Test: .*Acc@1 (?P<top1>[\d.]+)"),
)
_LEAST_CLASSES = 5  # it computes the accuracy of the five most probable classes


class TorchvisionReference(Program):
    """The script with its fastest settings: fp16, and for photographs the second version of its transforms,
    on tensors. It has no channels_last and does not compile."""

    name = "torchvision"
    log_options = ("--print-freq", "1")

    def command(self, task: Task, seed: int, output: Path) -> list[str]:
        if task.counts.num_classes < _LEAST_CLASSES:
            raise UserError(
                f"data.root: torchvision's script fails with fewer than {_LEAST_CLASSES} classes, and these "
                f"are {task.counts.num_classes}; leave it out"
            )
        size, optimizer = task.config.image_size, task.optimizer
        return [
            *(PYTHON, "train.py", "--data-path", str(task.data), "--model", task.network),
            *("--batch-size", str(task.batch_size), "--epochs", str(task.epochs)),
            *("--workers", str(task.workers), "--output-dir", str(output)),
            *("--opt", "sgd_nesterov" if optimizer.nesterov else "sgd", "--lr", f"{optimizer.lr:g}"),
            *("--momentum", f"{optimizer.momentum:g}", "--wd", f"{optimizer.weight_decay:g}"),
            *(
                ()
                if optimizer.decay_norm_and_bias
                else ("--norm-weight-decay", "0", "--bias-weight-decay", "0")
            ),
            *self._schedule(task),
            *self._loss(task),
            *("--train-crop-size", str(size), "--val-crop-size", str(task.eval_size)),
            *("--val-resize-size", str(round(task.eval_size / task.eval_crop))),
            *(("--use-v2", "--backend", "tensor") if task.has_photographs else ()),
            *(("--amp",) if self.precision(task) == "fp16" else ()),
            *(("--device", "cpu") if task.device == "cpu" else ()),
            *self.log_options,
            *self.extra,
        ]

    def _schedule(self, task: Task) -> Iterator[str]:
        yield from ("--lr-scheduler", "cosineannealinglr")
        if task.warmup_epochs:
            yield from ("--lr-warmup-epochs", str(task.warmup_epochs), "--lr-warmup-method", "linear")
            yield from ("--lr-warmup-decay", f"{max(task.config.schedule.start_fraction, 1e-6):g}")
        if task.final_fraction:
            yield from ("--lr-min", f"{task.final_fraction * task.optimizer.lr:g}")

    def _loss(self, task: Task) -> Iterator[str]:
        if task.config.loss.label_smoothing:
            yield from ("--label-smoothing", f"{task.config.loss.label_smoothing:g}")

    def new_log(self, task: Task) -> RunLog:
        return LineLog(_LOG, task)

    def images_per_epoch(self, task: Task) -> int:
        return task.counts.train  # with the last, smaller batch

    def differences(self, task: Task) -> Iterator[str]:
        yield from task.differences()
        yield "learning rate changes once an epoch"
        yield "no seed"
        if task.is_half:
            yield "evaluates in float32"
        if task.config.precision.mode != self.precision(task):
            yield f"{self.precision(task)}, not {task.config.precision.mode}"
        if task.config.runtime.channels_last:
            yield "NCHW"
        if task.compiles:
            yield "no torch.compile"
        if task.config.probably_streamed and task.config.augment.crop_scale != (0.08, 1.0):
            yield "crops of 8 to 100 % of the area"
        if not task.config.augment.flip:
            yield "flips images"
        if task.starts_as_identities:
            yield "residual blocks do not start as identities"

    def precision(self, task: Task) -> str:
        return "fp16" if task.is_half and task.device == "cuda" else "fp32"

    def channels_last(self, task: Task) -> bool:
        return False

    def compile_mode(self, task: Task) -> str:
        return "none"

    def versions(self) -> dict[str, str]:
        return {"torchvision": version("torchvision")}

    def source_hash(self) -> str:
        return hash_of_folder(self.folder, "*.py")

    @property
    def takes_seed(self) -> bool:
        return False

    def parameters(self, task: Task) -> int | None:
        import torch
        from torchvision.models import get_model, list_models

        if task.network not in list_models():
            raise UserError(
                f"model.name={task.config.model.name}: torchvision has no {task.network}; give another "
                "network, or leave out --peer torchvision"
            )
        with torch.device("meta"):
            model = get_model(task.network, weights=None, num_classes=task.counts.num_classes)
        return sum(parameter.numel() for parameter in model.parameters())
