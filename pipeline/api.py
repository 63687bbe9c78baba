"""Offers the library to Python programs. Only files that are asked for are written.

    from pipeline import api

    config = api.load_config("configs/quickstart.yaml", ["duration=3ep"])
    splits = api.load_splits(config)  # or api.Splits.from_arrays(api.ImageSet(images, labels), test)
    loaders = api.build_loaders(config, splits)  # batches on the device: augmented, normalised, channels_last
    model = api.build_model(config, splits)  # or a torch.nn.Module of your own
    result = api.fit(config, model, loaders)  # in place; precision, compiling and schedule as the config says
    print(f"{result.accuracy:.2%} of {result.seen} test images")
    trained = api.Trained.of(config, model, splits)
    mistakes = api.explain_mistakes(trained, count=10)  # images, maps and probabilities, as arrays
    api.draw_contact_sheet("mistakes.png", mistakes)

On several processes, each process runs the same lines under `accelerate launch`. `train(config)` makes a
whole run with its folder, and `load_trained("runs/latest")` takes the network out of one. A name in
pipeline/pretrained/registry.json in place of a run folder stands for weights that are shipped.
"""

from pathlib import Path

import torch
from torch import nn

from pipeline import data
from pipeline.argument_types import typed
from pipeline.config import Config, load_config
from pipeline.data import Batch, ImageSet, Loader, Loaders, Splits
from pipeline.distributed.processes import connect
from pipeline.distributed.watchdog import Watch
from pipeline.errors import TrainingError, UserError
from pipeline.explain import Explained, contact_sheet
from pipeline.explain.explain_model import explain_files, explain_mistakes, explain_pixels, explain_samples
from pipeline.explain.explain_run import explain_run
from pipeline.explain.faithfulness import Faithfulness, score_maps
from pipeline.inference.calibration import Calibration, calibrate
from pipeline.inference.evaluate_run import Evaluated, evaluate_run, predict_test_set
from pipeline.inference.export import export_run
from pipeline.inference.predict_files import Prediction, predict_files
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.run.console import TrainingConsole
from pipeline.train import train
from pipeline.training.build import build_initial_model, set_backends
from pipeline.training.evaluate import EvalResult
from pipeline.training.own_parts import (
    InspectedLoader,
    check_batch,
    check_classes,
    check_loaders,
    check_trainable,
    try_network,
)
from pipeline.training.precision import Precision
from pipeline.training.trainer import Trainer, side_stream

__all__ = [
    "Batch",
    "Calibration",
    "Config",
    "EvalResult",
    "Evaluated",
    "Explained",
    "Faithfulness",
    "ImageSet",
    "Loader",
    "Loaders",
    "Prediction",
    "Splits",
    "Trained",
    "TrainingError",
    "UserError",
    "build_loaders",
    "build_model",
    "calibrate",
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
    "predict_test_set",
    "score_maps",
    "train",
]

load_config = typed(load_config)
load_trained = typed(load_trained)
train = typed(train)
evaluate_run = typed(evaluate_run)
predict_test_set = typed(predict_test_set)
calibrate = typed(calibrate)
export_run = typed(export_run)
predict_files = typed(predict_files)
explain_run = typed(explain_run)
explain_files = typed(explain_files)
explain_mistakes = typed(explain_mistakes)
explain_pixels = typed(explain_pixels)
explain_samples = typed(explain_samples)
score_maps = typed(score_maps)


@typed
def load_splits(config: Config) -> Splits:
    """The data set of a config: uint8 images, labels, class names, statistics. Several processes: the first
    one reads it first.

    Raises:
        UserError: data that is missing or bad.
    """
    processes = connect(config)
    return processes.main_first(lambda: data.load_splits(config.data, config.seed, is_main=processes.is_main))


@typed
def build_loaders(config: Config, splits: Splits) -> Loaders:
    """The loaders that `data.loader` names, delivering this process's share of each batch on its device.

    Raises:
        UserError: a batch size that the processes do not divide, or that is more than the training set; or
            images of another size than the config's.

    >>> config = load_config("tests/tiny.yaml", ["precision.mode=bf16"])
    >>> batch = next(iter(build_loaders(config, load_splits(config)).train))
    >>> batch.images.shape, batch.images.dtype, batch.labels.shape  # DALI has no bfloat16: autocast casts
    (torch.Size([8, 3, 8, 8]), torch.float16, torch.Size([8]))
    """
    data.check_image_size(config, splits)
    processes = connect(config)
    return data.build_loaders(config, splits, processes.device, processes.shard)


@typed
def build_model(config: Config, splits: Splits) -> nn.Module:
    """The network of a config, float32, on this process's device: the same weights as `train` starts from.

    Raises:
        UserError: images of another size than the config's.

    >>> import torch
    >>> config = load_config("tests/tiny.yaml")
    >>> build_model(config, load_splits(config))(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """
    data.check_image_size(config, splits)
    set_backends(config)
    processes = connect(config)
    return build_initial_model(config, splits.num_classes, processes.device, is_main=processes.is_main)


@typed
def fit(config: Config, model: nn.Module, loaders: Loaders, *, quiet: bool = False) -> EvalResult:
    """Train a network in place, for `duration`, with the precision, optimizer and schedule of a config. Write
    no files.

    Args:
        config: of the run; `model` and `log` matter as far as they say when to evaluate.
        model: float32, on the device of the loaders, from (B, 3, H, W) images to (B, K) logits. Compiled in
            place; its keys stay. Modules in it that you put in eval mode stay in it, unless the whole is:
            then all of it but the norms that `model.freeze` has frozen is put in training mode.
        loaders: from `build_loaders`, or your own with the same protocol (`Loader`).
        quiet: print nothing.

    Returns:
        The evaluation on the test set at the last step. The moving average that `ema.decay` asks for is
        evaluated, but not kept.

    Raises:
        UserError: the model is not float32 on the device of the loaders, is frozen, or has too few classes,
            or does not take the first batch of a loader.
        TrainingError: the loss is not finite, or too many updates in a row were skipped.
    """
    set_backends(config)
    processes = connect(config)
    device = processes.device
    check_loaders(loaders)
    check_trainable(model, device)
    loaders = _inspected(config, model, loaders, device)
    console = TrainingConsole(enabled=processes.is_main and not quiet)
    with side_stream(device), Watch(processes, config.runtime.hang_timeout_s) as watch:
        trainer = Trainer.build(config, None, processes, model=model, loaders=loaders, console=console)
        trainer.watch = watch
        for warning in (*config.warnings, *trainer.plan.warnings):
            console.say(f"warning: {warning}")
        try:
            return trainer.fit()
        finally:
            trainer.close()


@typed
def draw_contact_sheet(path: str | Path, explained: Explained, title: str = "", subtitle: str = "") -> None:
    """Draw each image beside its map into one PNG of about 1600 pixels width, five pairs in a row.

    Args:
        path: the PNG; replaced if it is there.
        explained: images and maps, as the `explain` functions return them.
        title: the headline.
        subtitle: one smaller line under the title.

    Raises:
        UserError: the file cannot be written.
    """
    with contact_sheet.naming_picture(path):
        contact_sheet.draw_contact_sheet(path, explained, title, subtitle)


def _inspected(config: Config, model: nn.Module, loaders: Loaders, device: torch.device) -> Loaders:
    """Return the loaders with a check of their first batches: whether the network takes them."""
    precision = Precision(config.precision, device)

    def inspect(name: str, loader: Loader) -> Loader:
        def check(batch: Batch) -> None:
            check_batch(name, batch, device)
            logits = try_network(model, batch.images, precision.autocast())
            check_classes(name, batch, logits.shape[1], loaders.num_classes)

        return InspectedLoader(loader, check)

    return Loaders(
        train=inspect("train", loaders.train),
        test=inspect("test", loaders.test),
        holdout=None if loaders.holdout is None else inspect("holdout", loaders.holdout),
        num_classes=loaders.num_classes,
        class_sizes=loaders.class_sizes,
    )
