"""Explains the predictions of a run's checkpoint and draws them as a contact sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch

from pipeline.explain import METHODS, Explained, draw_contact_sheet
from pipeline.explain.contact_sheet import naming_picture
from pipeline.explain.explain_model import (
    EXPLAINED_IMAGES,
    ExplainKeywords,
    ExplainOptions,
    explain_files,
    explain_samples,
    predict_and_explain,
)
from pipeline.inference.trained_model import Trained, load_trained


@dataclass(frozen=True)
class ExplainRunOptions(ExplainOptions):
    """The options of `explain_run`.

    Attributes:
        files: image files of any size.
        indices: of test images.
        output: the picture; default: `explained.png` in the run folder, so that the training's
            `contact_sheet.png` stays; for shipped weights `NAME-explained.png` in the current folder.
        ema: explain the moving average of the weights.
    """

    files: Sequence[str | Path] = ()
    indices: Sequence[int] = ()
    output: str | Path | None = None
    ema: bool = False


class ExplainRunKeywords(ExplainKeywords, total=False):
    """The fields of `ExplainRunOptions` as keyword arguments."""

    files: Sequence[str | Path]
    indices: Sequence[int]
    output: str | Path | None
    ema: bool


def explain_run(
    path: str | Path,
    which: str = "last",
    count: int = EXPLAINED_IMAGES,
    overrides: Sequence[str] = (),
    device: torch.device | None = None,
    **keywords: Unpack[ExplainRunKeywords],
) -> Path:
    """Draw saliency maps of misclassified test images, of given ones, or of files, as a contact sheet.

    The network is a fresh one, float32 and eager, built from the checkpoint: never the live, compiled one.

    Args:
        path, which, overrides, device: as for `load_trained`.
        count: how many mistakes (or, where there are fewer, right predictions of the lowest confidence),
            unless files or indices are given.
        keywords: the fields of `ExplainRunOptions`: layer, method, target, files, indices, output, ema.

    Returns:
        The picture's path.

    Raises:
        UserError: as `load_trained` and the functions of `explain_model`, or the picture cannot be written.
    """
    return explain_and_draw(path, which, count, overrides, device, **keywords)[0]


def explain_and_draw(
    path: str | Path,
    which: str,
    count: int,
    overrides: Sequence[str],
    device: torch.device | None = None,
    **keywords: Unpack[ExplainRunKeywords],
) -> tuple[Path, Trained, Explained]:
    """Do what `explain_run` does; return the picture, the network and what was explained."""
    options = ExplainRunOptions(**keywords)
    trained = load_trained(path, which, overrides, device, ema=options.ema)
    accuracy = None
    files, indices = list(options.files or ()), list(() if options.indices is None else options.indices)
    if files:
        explained = explain_files(trained, files, options)
    elif indices:
        explained = explain_samples(trained, indices, options)
    else:
        explained, accuracy = predict_and_explain(trained, count, options)
    picture = Path(options.output) if options.output is not None else _default_picture(trained)
    with naming_picture(picture):
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_contact_sheet(picture, explained, trained.name, _subtitle(trained, explained, accuracy))
    return picture, trained, explained


def _default_picture(trained: Trained) -> Path:
    return Path(f"{trained.name}-explained.png") if trained.run is None else trained.run.explained


def _subtitle(trained: Trained, explained: Explained, accuracy: float | None) -> str:
    checkpoint = trained.checkpoint
    parts = [
        f"{trained.config.model.name} on {trained.config.data.dataset}",
        "shipped weights" if checkpoint is None else f"step {int(checkpoint.name.removeprefix('step-')):,}",
        *["moving average of the weights"] * trained.ema,
    ]
    if accuracy is not None:
        parts.append(f"test accuracy {accuracy:.2%} in float32")
    return f"{', '.join(parts)}; {METHODS[explained.method].title} of {explained.layer}"
