"""Evaluates a network: exact counts over a data set, on any number of processes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import FLIP, Views
from pipeline.data.batch import Batch, Loader
from pipeline.distributed.processes import sum_over_processes
from pipeline.errors import TrainingError
from pipeline.process.interrupt import keep_results
from pipeline.run.records import EvalFigures
from pipeline.training.build import without_compiled_blocks
from pipeline.training.precision import Precision
from pipeline.training.second_pass import (
    SeenOnce,
    count_on_device,
    count_with_least_sure,
    is_alone_with_images,
)
from pipeline.training.views import Forward, confidence, mean_logits

ONE_VIEW = Views()


@dataclass(frozen=True)
class EvalResult:
    """The counts of an evaluation.

    Attributes:
        correct: correct predictions, from one view per image.
        seen: samples, each counted once.
        loss: mean cross-entropy, without label smoothing, of one view per image.
        correct_views: correct predictions with the test-time views; None if none are asked for.
        views: name of these views, as `Views.name`.
        ema: the result of the moving average of the weights; None if there is none.
    """

    correct: int
    seen: int
    loss: float
    correct_views: int | None = None
    views: str = ""
    ema: "EvalResult | None" = None

    @property
    def accuracy(self) -> float:
        """Fraction of 1."""
        return self.correct / self.seen

    @property
    def accuracy_views(self) -> float | None:
        """Fraction of 1, with the test-time views; None if none are asked for."""
        return None if self.correct_views is None else self.correct_views / self.seen

    @property
    def correct_flip_tta(self) -> int | None:
        """Correct predictions from the mean of the logits of each image and its mirror image; None if not
        asked for."""
        return self.correct_views if self.views == FLIP else None

    @property
    def accuracy_flip_tta(self) -> float | None:
        """Fraction of 1; None if not asked for."""
        return self.accuracy_views if self.views == FLIP else None

    def figures(self) -> EvalFigures:
        """Return the figures as they are recorded, those of the moving average among them."""
        average = {} if self.ema is None else self.ema._accuracies()
        accuracies = {**self._accuracies(), **{f"ema_{name}": value for name, value in average.items()}}
        ema_loss = None if self.ema is None else self.ema.loss
        return EvalFigures(
            loss=self.loss, correct=self.correct, seen=self.seen, ema_loss=ema_loss, **accuracies
        )

    def _accuracies(self) -> dict[str, Any]:
        """Return the fields of `EvalFigures` for the accuracies of these weights."""
        fields: dict[str, Any] = {"accuracy": self.accuracy, "accuracy_flip_tta": self.accuracy_flip_tta}
        if self.correct_views is not None and self.views != FLIP:
            fields["accuracy_views"] = {self.views: self.accuracy_views}
        return fields


@dataclass
class Seen:
    """Remembers the logits of this process's images, from one view each.

    Attributes:
        parts: indices, (B, K) float32 logits and labels of each batch, on the CPU.
    """

    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def add(self, batch: Batch, logits: torch.Tensor) -> None:
        keep_results()
        kept = batch.valid
        self.parts.append((batch.indices[kept].cpu(), logits[kept].cpu(), batch.labels[kept].cpu()))

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Return logits, (N, K) float32, and labels, (N,) int64, in the order of the data set."""
        indices, logits, labels = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        order = indices.argsort()
        return logits[order].numpy(), labels[order].numpy()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    precision: Precision,
    device: torch.device,
    views: Views = ONE_VIEW,
    network: Forward | None = None,
    *,
    seen: Seen | None = None,
) -> EvalResult:
    """Count over the whole data set with the model's weights as they are, from one view and from several.

    The mode (train or eval) of every module in the model is restored afterwards. Waits for the device once,
    at the end.

    If only a share of the images gets more than one view, the least sure images of all processes are known
    only when all images have been seen once. A process that is alone, with its images in GPU memory, takes
    them from there, and the host still waits once. Otherwise the data set is read twice: the second time they
    are collected in full batches, each process its own. Streamed files are decoded again, because the pixels
    of a quarter of ImageNet's images would take gigabytes; there, more views of all images may cost less. The
    host waits twice more then, not once a batch.

    Args:
        model: the network that is trained, or another one.
        loader: this process's share; sums are reduced over all processes.
        precision: autocast as in training.
        device: of the sums.
        views: count with these test-time views too.
        network: computes float32 logits with the model. Default: eagerly, by PyTorch's own functions: calling
            `forward` leaves the compiled training graph alone, which would be compiled again for evaluation.
        seen: remembers the logits of every image; the host then waits for each batch.

    Raises:
        TrainingError: the loader's batches do not hold its samples.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    forward = network or _eager(model, precision)
    resident = loader if views.in_part and is_alone_with_images(loader) else None
    seen_once = _see_once(forward, loader, device, views, seen, resident is not None)
    if resident is not None:
        seen_once.totals[3] = count_on_device(forward, resident, views, seen_once)
    correct, count, loss, correct_views = sum_over_processes(seen_once.totals).tolist()
    if count != loader.num_samples:
        raise TrainingError(
            f"the loader has num_samples={loader.num_samples}, but its batches hold {count:.0f} samples; "
            "correct the loader"
        )
    if views.in_part and resident is None:
        correct_views = count_with_least_sure(forward, loader, views, seen_once)
    for module, training in modes:
        module.training = training
    of_views = None if views.kind == "none" else int(correct_views)
    return EvalResult(int(correct), int(count), loss / count, of_views, views.name)


def _eager(model: nn.Module, precision: Precision) -> Forward:
    def forward(images: torch.Tensor) -> torch.Tensor:
        with without_compiled_blocks(model), precision.autocast():
            return model.forward(images).float()

    return forward


def _see_once(
    forward: Forward,
    loader: Loader,
    device: torch.device,
    views: Views,
    seen: Seen | None,
    keep_logits: bool,
) -> SeenOnce:
    """See every image once: with the views if all images get them, else with one.

    Args:
        forward, loader, device, views, seen: as of `evaluate`.
        keep_logits: for `count_on_device`.
    """
    result = SeenOnce(torch.zeros(4, dtype=torch.float64, device=device))
    for batch in loader:
        logits = forward(batch.images)
        if seen is not None:
            seen.add(batch, logits)
        mean = logits if views.in_part else mean_logits(forward, batch.images, views.kind, logits)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        right, right_mean = ((votes.argmax(1) == batch.labels) & batch.valid for votes in (logits, mean))
        loss = torch.where(batch.valid, losses, 0).sum()
        result.totals += torch.stack([right.sum(), batch.valid.sum(), loss, right_mean.sum()])
        if views.in_part:
            result.confidences.append(torch.where(batch.valid, confidence(logits), torch.inf))
            result.right.append(right)
            result.indices.append(batch.indices.clone())  # a loader may use its memory again
        if keep_logits:
            result.logits.append(logits)
    return result


@torch.no_grad()
def predict(model: nn.Module, loader: Loader) -> torch.Tensor:
    """Logits of a data set in the order of its samples, float32 (N, K) on the CPU. One process only."""
    model.eval()
    return torch.cat([model(batch.images)[batch.valid].float().cpu() for batch in loader])
