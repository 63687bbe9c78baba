"""The library, from Python. Nothing is written that is not asked for.

    from pipeline.api import Trained, build_loaders, build_model, draw_contact_sheet, explain_mistakes, fit, load_config, load_splits

    config = load_config("configs/quickstart.yaml", ["duration=3ep"])
    splits = load_splits(config)  # uint8 images, labels, class names, mean and standard deviation
    loaders = build_loaders(config, splits)  # batches on the device: augmented, normalised, channels_last
    model = build_model(config, splits)  # or a torch.nn.Module of your own
    result = fit(config, model, loaders)  # in place; precision, compiling and schedule as the config says
    print(f"{result.accuracy:.2%} of {result.seen} test images")
    explained = explain_mistakes(Trained.of(config, model, splits), count=10)  # images, maps and probabilities, as arrays
    draw_contact_sheet("mistakes.png", explained)

On several processes, each runs the same lines under `accelerate launch`. A whole run with its folder is `train(config)`, and
`load_trained("runs/latest")` takes the network out of one.
"""

import torch
from torch import nn

from pipeline import data
from pipeline.config import Config, load_config
from pipeline.data import Batch, Loader, Loaders, Splits
from pipeline.distributed.processes import connect
from pipeline.distributed.watchdog import Watch
from pipeline.errors import TrainingError, UserError
from pipeline.explain import Explained, draw_contact_sheet
from pipeline.explain.explain_model import explain_files, explain_mistakes, explain_pixels, explain_samples
from pipeline.explain.explain_run import explain_run
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.inference.export import export_run
from pipeline.inference.predict_files import Prediction, predict_files
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.process.signals import StopSignal
from pipeline.run.console import TrainingConsole
from pipeline.train import train
from pipeline.training.build import build_initial_model, build_state_of, captures, set_backends
from pipeline.training.clock import Clock
from pipeline.training.evaluate import EvalResult
from pipeline.training.step import Step
from pipeline.training.trainer import Plan, Trainer
from pipeline.training.trainer import fit as _fit

__all__ = [
    "Batch",
    "Config",
    "EvalResult",
    "Explained",
    "Loader",
    "Loaders",
    "Prediction",
    "Splits",
    "Trained",
    "TrainingError",
    "UserError",
    "build_loaders",
    "build_model",
    "draw_contact_sheet",
    "evaluate_run",
    "explain_files",
    "explain_mistakes",
    "explain_pixels",
    "explain_run",
    "explain_samples",
    "export_run",
    "fit",
    "load_config",
    "load_splits",
    "load_trained",
    "predict_files",
    "train",
]


def load_splits(config: Config) -> Splits:
    """The data set of a config: uint8 images, labels, class names, statistics. Several processes: the first one reads it first.

    Raises:
        UserError: data that is missing or bad.
    """
    processes = connect(config)
    return processes.main_first(lambda: data.load_splits(config.data, config.seed, is_main=processes.is_main))


def build_loaders(config: Config, splits: Splits) -> Loaders:
    """The loaders that `data.loader` names, delivering this process's share of each batch on its device.

    Raises:
        UserError: a batch size that the processes do not divide, or that is more than the training set.

    >>> config = load_config("tests/tiny.yaml", ["precision.mode=bf16"])
    >>> batch = next(iter(build_loaders(config, load_splits(config)).train))
    >>> batch.images.shape, batch.images.dtype, batch.labels.shape  # DALI has no bfloat16: autocast casts
    (torch.Size([8, 3, 8, 8]), torch.float16, torch.Size([8]))
    """
    processes = connect(config)
    return data.build_loaders(config, splits, processes.device, processes.shard)


def build_model(config: Config, splits: Splits) -> nn.Module:
    """The network of a config, float32, on this process's device: the same weights as `train` starts from.

    >>> config = load_config("tests/tiny.yaml")
    >>> build_model(config, load_splits(config))(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """
    set_backends(config)
    processes = connect(config)
    return build_initial_model(config, splits.num_classes, processes.device, is_main=processes.is_main)


def fit(config: Config, model: nn.Module, loaders: Loaders, *, quiet: bool = False) -> EvalResult:
    """Train a network in place, for `duration`, as the config says: precision, compiling, optimizer, schedule. Writes no files.

    Args:
        config: of the run; `model` and `log` matter as far as they say when to evaluate.
        model: float32, on the device of the loaders, from (B, 3, H, W) images to (B, K) logits. Compiled in place; its keys stay.
            Modules in it that you put in eval mode stay in it, unless the whole is: then all of it is put in training mode.
        loaders: from `build_loaders`, or your own with the same protocol (`Loader`).
        quiet: print nothing.

    Returns:
        The evaluation on the test set at the last step. The moving average that `ema.decay` asks for is evaluated, but not kept.

    Raises:
        UserError: the model is not on the device of the loaders.
        TrainingError: the loss is not finite, or too many updates in a row were skipped.
    """
    set_backends(config)
    processes = connect(config)
    device = processes.device
    if (found := next(model.parameters()).device) != device:
        raise UserError(
            f"fit: the model is on {found}, the loaders deliver on {device}; move it with model.to({str(device)!r})"
        )
    plan = Plan.of(config, loaders.train.steps_per_epoch)
    # as in `train`: a captured step must not run on the default stream
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), Watch(processes, config.runtime.hang_timeout_s) as watch:
        state = build_state_of(model, config, processes)
        step = Step(config, state, plan.lr_at, captures(config.compile, device))
        console = TrainingConsole(plan.total_steps, enabled=processes.is_main and not quiet)
        for warning in plan.warnings:
            console.say(f"warning: {warning}")
        try:
            return _fit(
                Trainer(
                    config,
                    processes,
                    state,
                    step,
                    loaders,
                    plan,
                    Clock(device),
                    None,
                    None,
                    console,
                    StopSignal(),
                    watch,
                )
            )
        finally:
            console.close()
            if stream is not None:
                torch.cuda.current_stream(device).synchronize()
