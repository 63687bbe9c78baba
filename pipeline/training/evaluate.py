"""Evaluates a network: exact counts over a data set, on any number of processes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data.batch import Loader
from pipeline.errors import TrainingError
from pipeline.run.records import EvalFigures
from pipeline.training.precision import Precision


@dataclass(frozen=True)
class EvalResult:
    """The counts of an evaluation.

    Attributes:
        correct: correct predictions, from one view per image.
        seen: samples, each counted once.
        loss: mean cross-entropy, without label smoothing, of one view per image.
        correct_flip_tta: correct predictions from the mean of the logits of the image and its mirror image;
            None if not asked for.
        ema: the result of the moving average of the weights; None if there is none.
    """

    correct: int
    seen: int
    loss: float
    correct_flip_tta: int | None = None
    ema: "EvalResult | None" = None

    @property
    def accuracy(self) -> float:
        """Fraction of 1."""
        return self.correct / self.seen

    @property
    def accuracy_flip_tta(self) -> float | None:
        """Fraction of 1; None if not asked for."""
        return None if self.correct_flip_tta is None else self.correct_flip_tta / self.seen

    def figures(self) -> EvalFigures:
        """Return the figures as they are recorded, those of the moving average among them."""
        average = self.ema
        return EvalFigures(
            loss=self.loss,
            accuracy=self.accuracy,
            correct=self.correct,
            seen=self.seen,
            accuracy_flip_tta=self.accuracy_flip_tta,
            ema_loss=average.loss if average is not None else None,
            ema_accuracy=average.accuracy if average is not None else None,
            ema_accuracy_flip_tta=average.accuracy_flip_tta if average is not None else None,
        )


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, precision: Precision, device: torch.device, flip_tta: bool = False
) -> EvalResult:
    """Count over the whole data set with the model's weights as they are, one view per image.

    The model runs eagerly: calling `forward` leaves the compiled training graph alone, which would be
        compiled again
    for evaluation. The mode (train or eval) of every module in it is restored afterwards. Waits for the
    device once, at the end.

    Args:
        model: the network that is trained, or another one.
        loader: this process's share; sums are reduced over all processes.
        precision: autocast as in training.
        device: of the sums.
        flip_tta: count with test-time augmentation too: the mean of the logits of the image and its mirror
            image (two of the ten views of Krizhevsky et al. 2012, section 4.1).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in loader:
        with precision.autocast():
            logits = model.forward(batch.images).float()
            both = logits + model.forward(batch.images.flip(3)).float() if flip_tta else logits
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        correct, correct_both = (
            ((votes.argmax(1) == batch.labels) & batch.valid).sum() for votes in (logits, both)
        )
        totals += torch.stack(
            [correct, batch.valid.sum(), torch.where(batch.valid, losses, 0).sum(), correct_both]
        )
    for module, training in modes:
        module.training = training
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
    correct, seen, loss, correct_both = totals.tolist()
    if seen != loader.num_samples:
        raise TrainingError(
            f"the loader has num_samples={loader.num_samples}, but its batches hold {seen:.0f} samples; "
            "correct the loader"
        )
    return EvalResult(int(correct), int(seen), loss / seen, int(correct_both) if flip_tta else None)


@torch.no_grad()
def predict(model: nn.Module, loader: Loader) -> torch.Tensor:
    """Logits of a data set in the order of its samples, float32 (N, K) on the CPU. One process only."""
    model.eval()
    return torch.cat([model(batch.images)[batch.valid].float().cpu() for batch in loader])
