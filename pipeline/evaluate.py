"""Evaluation: exact counts over a data set, on any number of processes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data.batch import Loader
from pipeline.precision import Precision


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation counted.

    Attributes:
        correct: correct predictions.
        seen: samples, each counted once.
        loss: mean cross-entropy, without label smoothing.
    """

    correct: int
    seen: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Fraction of 1."""
        return self.correct / self.seen


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, precision: Precision, device: torch.device) -> EvalResult:
    """Count over the whole data set, one view per image, with the model's weights as they are.

    The model runs eagerly: calling `forward` leaves the compiled training graph alone, which would be compiled again
    for evaluation. Its mode (train or eval) is restored afterwards. Waits for the device once, at the end.

    Args:
        model: the raw module, not its DDP wrapper.
        loader: this process's share; sums are reduced over all processes.
        precision: autocast as in training.
        device: of the sums.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in loader:
        with precision.autocast():
            logits = model.forward(batch.images)
        losses = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        correct = (logits.argmax(1) == batch.labels) & batch.valid
        totals += torch.stack([correct.sum(), batch.valid.sum(), torch.where(batch.valid, losses, 0).sum()])
    model.train(was_training)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
    correct, seen, loss = totals.tolist()
    assert seen == loader.num_samples, f"evaluation saw {seen:.0f} of {loader.num_samples} samples"
    return EvalResult(int(correct), int(seen), loss / seen)


@torch.no_grad()
def predict(model: nn.Module, loader: Loader) -> torch.Tensor:
    """Logits of a data set in the order of its samples, float32 (N, K) on the CPU. One process only."""
    model.eval()
    return torch.cat([model(batch.images)[batch.valid].float().cpu() for batch in loader])
