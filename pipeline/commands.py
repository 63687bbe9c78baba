"""What can be done with a finished run: evaluate it again, explain what it got wrong."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn

from pipeline.build import build_raw_model, set_backends
from pipeline.checkpoint import EMA, folder_of, load_weights, newest_intact, verify
from pipeline.config import Config, load_config
from pipeline.data import Splits, build_loaders, load_splits
from pipeline.distributed import pick_device
from pipeline.errors import UserError
from pipeline.evaluate import EvalResult, evaluate, predict
from pipeline.precision import Precision
from pipeline.run import RunFolder, find_run, read_json

EXPLAINED_IMAGES = 10


@dataclass(frozen=True)
class Trained:
    """A trained network out of its run folder: raw, eager, float32, on a device."""

    run: RunFolder
    config: Config
    splits: Splits
    model: nn.Module
    checkpoint: Path
    device: torch.device


def load_trained(
    path: Path,
    which: str = "last",
    overrides: tuple[str, ...] = (),
    device: torch.device | None = None,
    splits: Splits | None = None,
) -> Trained:
    """Load a run's data and the network of one of its checkpoints.

    Args:
        path: the run folder.
        which: `last`, `best` or a step number.
        overrides: keys put over the run's config, such as `data.root=DIR` where the data has moved.
        device: default: as `runtime.device` says.
        splits: the run's data where it is in memory already; default: read again.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
    """
    run = find_run(path)
    config = load_config(run.path / "config.yaml", overrides)
    set_backends(config)
    device = device or pick_device(config)
    checkpoint = _checkpoint(run, which)
    splits = splits or load_splits(config.data, config.seed)
    model = build_raw_model(config, splits, device)
    try:
        model.load_state_dict(load_weights(checkpoint))
    except RuntimeError as error:
        raise UserError(f"{checkpoint}: does not fit this config's model ({str(error).splitlines()[0]})") from None
    return Trained(run, config, splits, model.eval(), checkpoint, device)


def _checkpoint(run: RunFolder, which: str) -> Path:
    if which == "last":
        newest, damaged = newest_intact(run.checkpoints)
        if newest is None:
            raise UserError("\n".join([f"{run.checkpoints}: no intact checkpoint", *damaged]))
        return newest
    if which == "best":
        which = str(read_json(run.checkpoints / "best.json")["step"])
    if not which.isdigit():
        raise UserError(f"--checkpoint: {which!r} is neither last, best nor a step")
    folder = folder_of(run.checkpoints, int(which))
    if not folder.is_dir():
        kept = ", ".join(str(int(p.name.removeprefix("step-"))) for p in sorted(run.checkpoints.glob("step-*")))
        raise UserError(f"--checkpoint: {run.path} keeps no step {which}; it keeps {kept or 'none'}")
    verify(folder)
    return folder


def evaluate_run(path: Path, which: str = "last", overrides: tuple[str, ...] = ()) -> EvalResult:
    """Accuracy on the test set of a run's checkpoint, and of the moving average in it, in the precision that it was trained in."""
    trained = load_trained(path, which, overrides)
    loader = build_loaders(trained.config, trained.splits, trained.device).test
    given = (loader, Precision(trained.config.precision, trained.device), trained.device, trained.config.evaluation.flip_tta)
    result = evaluate(trained.model, *given)
    if not (trained.checkpoint / EMA).is_file():
        return result
    trained.model.load_state_dict(load_weights(trained.checkpoint, EMA))
    return replace(result, ema=evaluate(trained.model, *given))


def explain_run(
    path: Path, which: str = "last", count: int = EXPLAINED_IMAGES, overrides: tuple[str, ...] = (), device: torch.device | None = None
) -> Path:
    """Draw Grad-CAM maps of misclassified test images (or the least sure ones) as `contact_sheet.png` in the run folder.

    The network is a fresh one, float32 and eager, built from the checkpoint: never the live, compiled or DDP one.

    Returns:
        The picture's path.
    """
    from pipeline.explain import draw_contact_sheet, explain_images, select_images
    from pipeline.models import cam_target_layer

    trained = load_trained(path, which, overrides, device)
    test, config = trained.splits.test, trained.config
    float32 = config.model_copy(update={"precision": config.precision.model_copy(update={"mode": "fp32"})})
    loader = build_loaders(float32, trained.splits, trained.device).test
    logits = predict(trained.model, loader).numpy()
    chosen = select_images(logits, test.labels, min(count, len(test)))
    images = _normalised(test.images[chosen], trained.splits, trained.device)
    explained = explain_images(trained.model, images, cam_target_layer(trained.model))
    accuracy = float((logits.argmax(1) == test.labels).mean())
    picture = trained.run.path / "contact_sheet.png"
    draw_contact_sheet(
        picture,
        test.images[chosen],
        explained.maps,
        test.labels[chosen],
        explained.predicted,
        explained.confidence,
        trained.splits.class_names,
        title=trained.run.path.name,
        subtitle=f"{config.model.name} on {config.data.dataset}, test accuracy {accuracy:.2%} in float32; Grad-CAM of the last stage",
    )
    return picture


def _normalised(images: np.ndarray, splits: Splits, device: torch.device) -> torch.Tensor:
    """(N, H, W, C) uint8 → (N, C, H, W) float32, as the loaders normalise."""
    mean, std = torch.tensor(splits.mean), torch.tensor(splits.std)
    scaled = (torch.from_numpy(images.copy()).float() / 255 - mean) / std
    return rearrange(scaled, "n h w c -> n c h w").to(device)
