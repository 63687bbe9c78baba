"""Holds all that must survive a restart in one object, and restores it."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import Config
from pipeline.distributed.gradient_averaging import GradientMean
from pipeline.errors import UserError, first_line
from pipeline.optim.ema import Ema
from pipeline.optim.lookahead import Lookahead
from pipeline.optim.optimizer import build_optimizer
from pipeline.run.checkpoint import EMA, WEIGHTS, Snapshot, map_tensors, read_checkpoint
from pipeline.run.records import BestEvaluation, TrainRecord
from pipeline.training.precision import Precision


class Totals:
    """Sums over steps. They stay on the device, so that no step waits for the host; they are read at log
    points.

    Attributes:
        values: (5,) float64: loss, correct, images; skipped updates since the start of the run; skipped
            updates in a row.
    """

    def __init__(self, device: torch.device):
        self.values = torch.zeros(5, dtype=torch.float64, device=device)

    def add(
        self, loss: torch.Tensor, correct: torch.Tensor, num_images: int, found_inf: torch.Tensor | None
    ) -> None:
        """Add one step.

        Args:
            loss: mean of the step, a device scalar.
            correct: correct predictions, a device scalar.
            num_images: of the step.
            found_inf: a device scalar, 1 if the update was skipped; None if none can be, which takes a third
                of the launches.
        """
        if found_inf is None:
            self.values[0].add_(loss, alpha=num_images)
            self.values[1].add_(correct)
            self.values[2].add_(num_images)
            return
        # the loss of a skipped update may be infinite: in the mean it would hide all others
        skipped = found_inf > 0
        sums = torch.stack([loss * num_images, correct.to(loss.dtype), torch.full_like(loss, num_images)])
        self.values[:3] += sums.masked_fill(skipped, 0)
        self.values[3:] += found_inf
        self.values[4:].mul_(found_inf)

    def start_window(self) -> None:
        """Zero the sums of the window. The counts of skipped updates go on."""
        self.values[:3] = 0


@dataclass
class TrainState:
    """The model, the optimizer, the precision and the position of a run.

    Attributes:
        model: the network, the same on every process. Its state-dict keys are saved.
        optimizer: reads the scaler's found_inf on the device; the tensor `lr` sets its learning rate.
        precision: autocast and GradScaler.
        totals: sums of the open log window.
        ema: moving average of the weights, or None.
        lookahead: slow weights, or None.
        gradient_mean: averages the gradients over the processes; None on one process.
        class_weights: (K,) float32, factors of the classes in the loss, or None. They follow from config and
            data set, and are not saved.
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
    lookahead: Lookahead | None = None
    gradient_mean: GradientMean | None = None
    class_weights: torch.Tensor | None = None
    step: int = 0
    best: BestEvaluation | None = None
    last_train: TrainRecord | None = None
    clock: dict[str, Any] = field(default_factory=dict)

    @property
    def lr(self) -> torch.Tensor:
        return self.optimizer.param_groups[0]["lr"]

    def is_finite(self) -> bool:
        """True if weights, norm statistics, moving average and optimizer state are finite; waits for the
        device."""
        models = [self.model, *([self.ema.model] if self.ema is not None else [])]
        values = [parameter.detach() for model in models for parameter in model.parameters()]
        values += [_without_mask(*named) for model in models for named in model.named_buffers()]
        values += [value for entry in self.optimizer.state.values() for value in entry.values()]
        by_device: dict[torch.device, list[torch.Tensor]] = {}  # AdamW may keep its step counts on the CPU
        for value in values:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                by_device.setdefault(value.device, []).append(value)
        largest = [torch.nn.utils.get_total_norm(group, math.inf) for group in by_device.values()]
        return all(math.isfinite(value.item()) for value in largest)

    def state_dict(self) -> dict[str, Any]:
        """Return all but the weights: tensors, numbers and strings, so that it loads with
        `weights_only=True`."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "totals": self.totals.values,
            "best": self.best.to_json() if self.best is not None else {},
            "last_train": self.last_train.to_json() if self.last_train is not None else {},
            "clock": self.clock,
            **({"lookahead": self.lookahead.slow} if self.lookahead is not None else {}),
            "rng": torch.get_rng_state(),
            # dropout draws from this generator on a GPU; each replay of a captured step advances it
            **({"cuda_rng": torch.cuda.get_rng_state(self.lr.device)} if self.lr.is_cuda else {}),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, on any device."""
        self.step, self.clock = saved["step"], saved["clock"]
        self.best = BestEvaluation(**saved["best"]) if saved["best"] else None
        self.last_train = TrainRecord(**saved["last_train"]) if saved["last_train"] else None
        self._load_optimizer(saved["optimizer"])
        self.precision.scaler.load_state_dict(saved["scaler"])
        self.totals.values.copy_(saved["totals"])
        if self.lookahead is not None:
            self.lookahead.load(saved["lookahead"])
        torch.set_rng_state(saved["rng"].cpu())
        if self.lr.is_cuda and "cuda_rng" in saved:  # a checkpoint of a CPU has none
            torch.cuda.set_rng_state(saved["cuda_rng"].cpu(), self.lr.device)

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Load the optimizer's state, but keep the tensors that hold the learning rates, which the groups
        share."""
        groups = self.optimizer.param_groups
        kept = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in groups]
        self.optimizer.load_state_dict(saved)  # replaces all entries of a group
        for group, entries in zip(self.optimizer.param_groups, kept, strict=True):
            entries["lr"].copy_(group["lr"])
            group.update(entries)
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    # fused optimizers read memory in order: the layout must be that of the weight
                    same_layout = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                    state[key] = same_layout.copy_(value)

    def snapshot(self) -> Snapshot:
        """Copy the state, so that later training steps leave the copy alone.

        The copy is made on the state's device. On a GPU it takes training almost no time, and the memory of a
        copy for a moment.
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


def _without_mask(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return a buffer, with 0 for each infinity unless it is a norm's: it may be the mask of an attention."""
    if not value.is_floating_point() or name.endswith(("running_mean", "running_var")):
        return value
    return value.nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0)


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
            f"{folder}: does not fit this config's model and optimizer ({first_line(error)}); "
            "give the run's own config"
        ) from None


def copy_to_rehearse(state: TrainState, config: Config) -> TrainState:
    """Return a state like that of a run at its start, on one process and not compiled, in memory of its own.

    Args:
        state: of the run; not changed.
        config: the run's config.
    """
    model, device = copy.deepcopy(state.model), state.totals.values.device
    optimizer = build_optimizer(config.optimizer, model)
    precision = Precision(config.precision, device)
    return TrainState(model, optimizer, precision, Totals(device), class_weights=state.class_weights)
