"""All that must survive a restart, in one object."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.distributed.gradient_averaging import GradientMean
from pipeline.errors import UserError
from pipeline.optim.ema import Ema
from pipeline.run.checkpoint import EMA, WEIGHTS, Snapshot, first_line, map_tensors, read_checkpoint
from pipeline.run.records import BestEvaluation, TrainRecord
from pipeline.training.precision import Precision


class Totals:
    """Sums over steps, kept on the device so that no step waits for the host; read at log points.

    Attributes:
        values: (5,) float64: loss, correct, images, skipped updates since the start of the run, skipped updates in a row until now.
    """

    def __init__(self, device: torch.device):
        self.values = torch.zeros(5, dtype=torch.float64, device=device)

    def add(
        self, loss: torch.Tensor, correct: torch.Tensor, num_images: int, found_inf: torch.Tensor
    ) -> None:
        """Add one step: mean loss, number of correct predictions, images, and 1 where the update was skipped (device scalars)."""
        # a loss that overflowed belongs to a skipped update: keep it out of the mean, where it would hide everything else
        skipped = found_inf > 0
        sums = torch.stack([loss * num_images, correct.to(loss.dtype), torch.full_like(loss, num_images)])
        self.values[:3] += sums.masked_fill(skipped, 0)
        self.values[3:] += found_inf
        self.values[4:].mul_(found_inf)

    def start_window(self) -> None:
        """Zero the sums of the window; the counts of skipped updates run on."""
        self.values[:3] = 0


@dataclass
class TrainState:
    """Model, optimizer, precision and position of a run.

    Attributes:
        model: the network, the same on every process, whose keys are saved.
        optimizer: heeds the scaler's found_inf on the device; `lr` is the tensor that sets its learning rate.
        precision: autocast and GradScaler.
        totals: sums of the open log window.
        ema: moving average of the weights, or None.
        gradient_mean: over the processes; None where there is one.
        step: optimizer steps done.
        best: the best evaluation so far; None before the first one.
        last_train: the newest record of training; None before the first one.
        clock: seconds and windows of throughput so far (`Clock.state_dict`).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    totals: Totals
    ema: Ema | None = None
    gradient_mean: GradientMean | None = None
    step: int = 0
    best: BestEvaluation | None = None
    last_train: TrainRecord | None = None
    clock: dict[str, Any] = field(default_factory=dict)

    @property
    def lr(self) -> torch.Tensor:
        return self.optimizer.param_groups[0]["lr"]

    def is_finite(self) -> bool:
        """Whether weights, norm statistics, their average and the optimizer's state hold no NaN and no infinity; waits for the device."""
        models = [self.model, *([self.ema.model] if self.ema is not None else [])]
        tensors = [tensor for model in models for tensor in model.state_dict().values()]
        tensors += [
            value
            for entry in self.optimizer.state.values()
            for value in entry.values()
            if isinstance(value, torch.Tensor)
        ]
        floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        by_device: dict[torch.device, list[torch.Tensor]] = {}  # AdamW keeps its step counts where it likes
        for tensor in floating:
            by_device.setdefault(tensor.device, []).append(tensor)
        return all(
            math.isfinite(torch.nn.utils.get_total_norm(group, math.inf).item())
            for group in by_device.values()
        )

    def state_dict(self) -> dict[str, Any]:
        """All but the weights; tensors, numbers and strings only, so that it loads with `weights_only=True`."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "totals": self.totals.values,
            "best": self.best.to_json() if self.best is not None else {},
            "last_train": self.last_train.to_json() if self.last_train is not None else {},
            "clock": self.clock,
            "rng": torch.get_rng_state(),
            # what dropout draws from on a GPU; where the step is captured, every replay moves it on
            **({"cuda_rng": torch.cuda.get_rng_state(self.lr.device)} if self.lr.is_cuda else {}),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.step, self.clock = saved["step"], saved["clock"]
        self.best = BestEvaluation(**saved["best"]) if saved["best"] else None
        self.last_train = TrainRecord(**saved["last_train"]) if saved["last_train"] else None
        # loading replaces all entries of a group: the tensors that hold its rate, which are shared, and what this device needs are put back
        own = [
            {key: group[key] for key in ("lr", "capturable") if key in group}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, kept in zip(self.optimizer.param_groups, own, strict=True):
            kept["lr"].copy_(group["lr"])
            group.update(kept)
        for (
            parameter,
            state,
        ) in (
            self.optimizer.state.items()
        ):  # fused optimizers read memory in order: its layout must be the weight's
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(
                        value
                    )
        self.precision.scaler.load_state_dict(saved["scaler"])
        self.totals.values.copy_(saved["totals"])
        torch.set_rng_state(saved["rng"].cpu())
        if self.lr.is_cuda and "cuda_rng" in saved:  # not where the CPU has saved
            torch.cuda.set_rng_state(saved["cuda_rng"].cpu(), self.lr.device)

    def snapshot(self) -> Snapshot:
        """Copy the state, so that later training steps leave the copy alone.

        The copy is made on the state's own device. On a GPU that costs training next to nothing, and the memory of the copy for a moment.
        """
        models = {WEIGHTS: self.model} | ({EMA: self.ema.model} if self.ema is not None else {})
        everything = {
            "weights": {name: model.state_dict() for name, model in models.items()},
            "rest": self.state_dict(),
        }
        copy = map_tensors(everything, lambda tensor: tensor.detach().clone())
        copied = torch.cuda.Event() if self.totals.values.is_cuda else None
        if copied is not None:
            copied.record()
        return Snapshot(self.step, copy["weights"], copy["rest"], self.best, copied)

    def restore(self, saved: Snapshot) -> None:
        """Take over a snapshot, on any device and number of processes."""
        self.model.load_state_dict(saved.weights[WEIGHTS])
        if self.ema is not None:
            self.ema.model.load_state_dict(saved.weights[EMA])
        self.load_state_dict(saved.rest)


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restore a state from a checkpoint. Verify first.

    Raises:
        UserError: the checkpoint cannot be read, or is one of another model.
    """
    saved = read_checkpoint(folder, with_ema=state.ema is not None)
    try:
        state.restore(saved)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}: does not fit this config's model and optimizer ({first_line(error)}); give the run's own config"
        ) from None
