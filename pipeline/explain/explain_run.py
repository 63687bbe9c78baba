"""Explains what a finished run got wrong."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.explain import METHODS, draw_contact_sheet, select_images
from pipeline.explain.explain_model import EXPLAINED_IMAGES, How, explain_files, explain_samples, resolve
from pipeline.inference.trained_model import load_trained


def explain_run(
    path: str | Path,
    which: str = "last",
    count: int = EXPLAINED_IMAGES,
    overrides: Sequence[str] = (),
    device: torch.device | None = None,
    *,
    files: Sequence[str | Path] = (),
    indices: Sequence[int] = (),
    layer: str | None = None,
    method: str = "gradcam",
    target: str | int = "predicted",
    output: str | Path | None = None,
    ema: bool = False,
) -> Path:
    """Draw maps of misclassified test images, of given ones, or of files, as a contact sheet.

    The network is a fresh one, float32 and eager, built from the checkpoint: never the live, compiled one.

    Args:
        path, which, overrides, device, ema: as for `load_trained`.
        count: how many mistakes (or, where there are fewer, least sure ones), unless files or indices are given.
        files: image files of any size.
        indices: of test images.
        layer, method, target: as for `explain_pixels`.
        output: the picture; default: `explained.png` in the run folder, which leaves the `contact_sheet.png` of the training alone.

    Returns:
        The picture's path.
    """
    trained = load_trained(path, which, overrides, device, ema=ema)
    how = How(layer=layer, method=method, target=target)
    assert trained.run is not None and trained.checkpoint is not None
    about = [
        f"{trained.config.model.name} on {trained.config.data.dataset}",
        f"step {int(trained.checkpoint.name.removeprefix('step-')):,}",
        *["moving average of the weights"] * ema,
    ]
    if files:
        explained = explain_files(trained, files, **how)
    elif indices:
        explained = explain_samples(trained, indices, **how)
    else:
        resolve(trained, **how)  # a name that is wrong is told before the whole test set is predicted
        logits, labels = trained.test_logits(), trained.splits.test.labels
        explained = explain_samples(trained, select_images(logits, labels, count).tolist(), **how)
        about.append(f"test accuracy {(logits.argmax(1) == labels).mean():.2%} in float32")
    picture = Path(output) if output is not None else trained.run.explained
    try:
        draw_contact_sheet(
            picture,
            explained,
            trained.run.path.name,
            f"{', '.join(about)}; {METHODS[method].title} of {explained.layer}",
        )
    except OSError as error:
        raise UserError(
            f"{picture}: cannot be written ({error.strerror or error}); choose another place with --output"
        ) from None
    return picture
