"""Puts a trainer back to the start of a run with another seed, without compiling or capturing again.

A captured step reads and writes fixed memory, so every tensor of the state keeps its memory and is filled
anew.
"""

from collections.abc import Iterator

import torch
from torch import nn

from pipeline.config import Config
from pipeline.data import Loaders, Splits
from pipeline.data.loaders.fused import FusedLoader
from pipeline.models import SpeedNet
from pipeline.training.build import build_initial_model, build_state_of, fit_to_images
from pipeline.training.losses import compute_class_weights
from pipeline.training.state import TrainState
from pipeline.training.trainer import Trainer


def restart(trainer: Trainer, config: Config, splits: Splits, loaders: Loaders) -> None:
    """Make a trainer what `Trainer.build` makes of these arguments, except for the layers that depend on the
    training images: `fit_to_images_again` computes them.

    Everything is reset: weights, norm statistics, moving average, slow weights of Lookahead, optimizer, loss
    scale, sums, counters, draws, and torch's random number generators. On a GPU, call this inside the
    trainer's stream.

    Args:
        trainer: without a run folder; changed in place.
        config: that of the trainer, but for the seed.
        splits: the data set of this config.
        loaders: of this config; at their start.
    """
    assert trainer.run is None, "the run folder of a trainer holds one run"
    device = trainer.processes.device
    uncompiled = config.model_copy(update={"compile": config.compile.model_copy(update={"mode": "none"})})
    model = build_initial_model(config, splits.num_classes, device)
    fresh = build_state_of(model, uncompiled, trainer.processes)
    fresh.class_weights = compute_class_weights(config.loss, loaders.num_classes, loaders.class_sizes, device)
    _take_over(trainer.state, fresh)
    trainer.step.take_draws_of(config)
    trainer.config, trainer.splits, trainer.loaders = config, splits, loaders


def fit_to_images_again(trainer: Trainer) -> None:
    """Compute the layers of a restarted trainer that depend on the training images.

    Weights that come from a file keep their values, as in `build_state`.
    """
    state, splits = trainer.state, trainer.splits
    assert splits is not None
    if isinstance(state.model, SpeedNet) and trainer.config.model.weights is None:
        loader = trainer.loaders.train
        fit_to_images(state.model, splits, loader.images if isinstance(loader, FusedLoader) else None)
        if state.ema is not None:
            _copy_network(state.model, state.ema.model)


@torch.no_grad()
def _take_over(state: TrainState, fresh: TrainState) -> None:
    """Copy a state that has taken no step into the memory of another one."""
    _copy_network(fresh.model, state.model)
    if state.ema is not None and fresh.ema is not None:
        _copy_network(fresh.ema.model, state.ema.model)
    if state.lookahead is not None and fresh.lookahead is not None:
        state.lookahead.load(fresh.lookahead.slow)
    if state.class_weights is not None and fresh.class_weights is not None:
        state.class_weights.copy_(fresh.class_weights)
    _take_over_optimizer(state.optimizer, fresh.optimizer)
    state.precision.scaler.load_state_dict(fresh.precision.scaler.state_dict())  # fills its tensors in place
    state.totals.values.zero_()
    state.step, state.best, state.last_train, state.clock = 0, None, None, {}


@torch.no_grad()
def _copy_network(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers, those that no checkpoint holds too."""
    torch._foreach_copy_(list(_tensors(target)), list(_tensors(source)))


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _take_over_optimizer(optimizer: torch.optim.Optimizer, fresh: torch.optim.Optimizer) -> None:
    """Copy the state of each parameter; a tensor that a fresh optimizer does not have yet starts as zeros."""
    optimizer.zero_grad(set_to_none=True)
    for group, fresh_group in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group["lr"].copy_(fresh_group["lr"])
        for parameter, fresh_parameter in zip(group["params"], fresh_group["params"], strict=True):
            initial = fresh.state.get(fresh_parameter, {})
            for key, value in optimizer.state.get(parameter, {}).items():
                if key in initial:
                    value.copy_(initial[key])
                else:
                    value.zero_()
