"""Grad-CAM: where in an image the evidence for a class lies, and a sheet of such pictures to hand around.

Maps are made after training, on a fresh float32 eager model built from the checkpoint. The compiled, bf16 or DDP model crashes,
hangs or gives a wrong map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from torch import Tensor, nn

from pipeline import style
from pipeline.errors import UserError

_COLUMNS = 5  # pairs of pictures in a row of the sheet
_MAX_TILE_PX = 128  # the longer side of one picture
_SEAM_PX, _GUTTER_PX, _MARGIN_PX = 6, 44, 56  # between the two of a pair, between pairs, around all
_HEADER_PX, _CAPTION_PX, _FOOTER_PX = 128, 92, 66


@dataclass(frozen=True)
class Explanations:
    """What a model said about N images, and why.

    Attributes:
        maps: (N, H, W) float32 in [0, 1], each scaled by its own maximum; all zero where nothing spoke for the class, or every
            place alike.
        probabilities: (N, K) float32, the softmax of the logits.
        predicted: (N,) int64, the most probable class.
    """

    maps: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32, the probability of the predicted class."""
        return self.probabilities[np.arange(len(self.predicted)), self.predicted]


def select_images(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Choose the images most worth looking at: confident mistakes, then the least sure of the right ones.

    Args:
        logits: (N, K) floating point; log-probabilities give the same choice.
        labels: (N,) integer, the true classes.
        count: how many to choose.

    Returns:
        (min(count, N),) int64 indices in order of interest; equals are in order of index.
    """
    assert logits.ndim == 2 and labels.shape == (len(logits),), f"{logits.shape} logits, {labels.shape} labels"
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    surprise = np.log(np.exp(shifted).sum(axis=1))  # minus the log-probability of the prediction: also orders those that round to 1
    wrong = logits.argmax(axis=1) != labels
    order = np.lexsort((np.where(wrong, surprise, -surprise), ~wrong))
    return order[:count]


def explain_images(
    model: nn.Module, images: Tensor, target_layer: nn.Module, *, classes: Sequence[int] | None = None, batch_size: int = 64
) -> Explanations:
    """Grad-CAM (Selvaraju et al. 2017, section 3) by the grad-cam library.

    The gradient of the class's logit, averaged over the positions of `target_layer`'s output, weighs that output's channels; the
    positive part of their sum, scaled to [0, 1] and resized bilinearly to the image, is the map.

    Args:
        model: float32, eager, not wrapped; from images to (N, K) logits. It is left as it was found: modes, gradients, hooks.
        images: (N, 3, H, W) float32, normalised as in training, on any device.
        target_layer: a module of `model` with a (N, C, h, w) output, usually the last stage of convolutions.
        classes: the class to explain for each image; by default the predicted one.
        batch_size: images in one forward and backward pass.

    Raises:
        UserError: the logits are not finite, as after a diverged training.
    """
    from pytorch_grad_cam import GradCAM  # takes 13 s to import
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    _assert_explainable(model, target_layer)
    assert images.ndim == 4 and len(images) > 0 and (classes is None or len(classes) == len(images)), images.shape
    device = next(model.parameters()).device
    maps, probabilities = [], []
    with _frozen(model), torch.autocast(device.type, enabled=False), np.errstate(invalid="ignore"):
        # The library keeps a view of the layer's output; a copy stays right if the next operation is in place (`out += shortcut`, ReLU).
        cam = GradCAM(model, [target_layer], reshape_transform=torch.clone)
        try:  # not `with cam`: its exit swallows an IndexError
            for start in range(0, len(images), batch_size):
                # With frozen parameters, gradients reach the layer only if the input asks for one.
                batch = images[start : start + batch_size].detach().to(device, torch.float32, copy=True).requires_grad_()
                targets = None if classes is None else [ClassifierOutputTarget(int(c)) for c in classes[start : start + batch_size]]
                maps.append(cam(batch, targets))  # pyright: ignore[reportArgumentType]  # targets are callables; the library declares modules
                logits = cam.outputs.detach()
                if not torch.isfinite(logits).all():
                    raise UserError("explain: the model's logits are not finite, its training has diverged; choose an earlier checkpoint")
                probabilities.append(logits.softmax(dim=1).cpu().numpy())
        finally:
            cam.activations_and_grads.release()
    stacked = np.concatenate(probabilities)
    return Explanations(maps=np.concatenate(maps).astype(np.float32), probabilities=stacked, predicted=stacked.argmax(axis=1))


def _assert_explainable(model: nn.Module, target_layer: nn.Module) -> None:
    modules = list(model.modules())
    assert any(module is target_layer for module in modules), "the target layer is no part of the model"
    assert all(p.dtype == torch.float32 for p in model.parameters()), "Grad-CAM needs float32 parameters"
    assert not isinstance(model, nn.parallel.DistributedDataParallel), "Grad-CAM hangs on a DDP model: give the module inside"
    assert all(m._compiled_call_impl is None and not hasattr(m, "_orig_mod") for m in modules), "Grad-CAM needs an eager model"


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, gradients for the input but no parameter; afterwards modes and parameters' gradients are as before."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None  # set aside: the library clears gradients
        with torch.inference_mode(False), torch.enable_grad():  # the caller may have switched both off
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def draw_contact_sheet(
    path: Path,
    images: np.ndarray,
    maps: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    class_names: Sequence[str],
    title: str,
    subtitle: str,
) -> None:
    """Draw each image beside its Grad-CAM map into one PNG of about 1600 pixels width, five pairs in a row.

    Args:
        path: the PNG; replaced if it is there.
        images: (N, H, W, 3) uint8, as they look (not normalised).
        maps: (N, H, W) in [0, 1], the evidence for the predicted class.
        true: (N,) integer, the true class.
        predicted: (N,) integer, the predicted class.
        confidence: (N,) in [0, 1], the probability of the predicted class.
        class_names: the name of each class, in any script; cut where too long for the column.
        title: the headline, such as the name of the run.
        subtitle: one smaller line under it: accuracy, architecture, target layer, method.
    """
    num_images, height, width = images.shape[:3]
    assert num_images > 0 and images.shape == (num_images, height, width, 3) and images.dtype == np.uint8, f"{images.shape} {images.dtype}"
    assert maps.shape == (num_images, height, width) and len(true) == len(predicted) == len(confidence) == num_images
    zoom = _MAX_TILE_PX / max(height, width)
    zoom = float(int(zoom)) if zoom >= 3 else zoom  # small pixels are shown whole
    tile_w, tile_h = round(width * zoom), round(height * zoom)
    pair_w = 2 * tile_w + _SEAM_PX
    sheet_w = 2 * _MARGIN_PX + _COLUMNS * pair_w + (_COLUMNS - 1) * _GUTTER_PX
    sheet_h = _HEADER_PX + -(-num_images // _COLUMNS) * (tile_h + _CAPTION_PX) + _FOOTER_PX
    names = [style.one_line(name) for name in class_names]
    title, subtitle = style.one_line(title), style.one_line(subtitle)
    with style.drawing([*names, title, subtitle]):
        page = _Page(style.new_figure(sheet_w, sheet_h), sheet_w, sheet_h)
        text_w = sheet_w - 2 * _MARGIN_PX
        style.shorten(page.write(_MARGIN_PX, 54, title, 26, weight="bold"), text_w)
        style.shorten(page.write(_MARGIN_PX, 84, subtitle, 15, color=style.MUTED), text_w)
        for i in range(num_images):
            row, column = divmod(i, _COLUMNS)
            x, y = _MARGIN_PX + column * (pair_w + _GUTTER_PX), _HEADER_PX + row * (tile_h + _CAPTION_PX)
            page.show(x, y, tile_w, tile_h, images[i])
            page.show(x + tile_w + _SEAM_PX, y, tile_w, tile_h, images[i], evidence=maps[i])
            _caption(
                page, x, y + tile_h, pair_w, names[true[i]], names[predicted[i]], float(confidence[i]), right=bool(true[i] == predicted[i])
            )
        _legend(page, sheet_h - _FOOTER_PX + 22, any_right=bool((true == predicted).any()))
        style.save_png(page.figure, path)


@dataclass(frozen=True)
class _Page:
    """A figure addressed in pixels from its upper left corner."""

    figure: Figure
    width: int
    height: int

    def write(self, x: float, y: float, text: str, size_px: float, **style_of_text) -> Text:
        """Text that starts at x on the baseline y."""
        options = {"va": "baseline", "ha": "left", **style_of_text}
        return self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size_px * style.PX, **options)

    def fill(self, x: float, y: float, width: float, height: float, color: str) -> None:
        corner = (x / self.width, 1 - (y + height) / self.height)
        self.figure.add_artist(Rectangle(corner, width / self.width, height / self.height, facecolor=color, linewidth=0))

    def show(self, x: float, y: float, width: float, height: float, image: np.ndarray, evidence: np.ndarray | None = None) -> None:
        """An image; with its evidence (H, W), the image is grey and the evidence lies over it."""
        axes = self.figure.add_axes((x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height))
        axes.set_axis_off()
        if evidence is None:
            axes.imshow(image, aspect="auto")
            return
        grey = image @ np.array(style.LUMA)
        axes.imshow(grey, cmap="gray", vmin=style.GREY_RANGE[0], vmax=style.GREY_RANGE[1], aspect="auto")
        colours = LinearSegmentedColormap.from_list("evidence", style.EVIDENCE)
        axes.imshow(evidence, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="bilinear")
        if not evidence.any():
            box = {"facecolor": style.PAPER, "alpha": 0.85, "linewidth": 0, "boxstyle": "round,pad=0.4"}
            axes.text(0.5, 0.5, "nothing\nstands out", ha="center", va="center", transform=axes.transAxes, fontsize=13 * style.PX, bbox=box)


def _caption(page: _Page, x: float, y: float, width: float, true: str, predicted: str, confidence: float, *, right: bool) -> None:
    colour, mark = (style.BLUE, "✓") if right else (style.VERMILLION, "✗")
    label_w = 86
    page.fill(x, y + 4, width, 3, colour)
    page.write(x, y + 29, "true", 14, color=style.MUTED)
    style.shorten(page.write(x + label_w, y + 29, true, 14), width - label_w)
    page.write(x, y + 51, "predicted", 14, color=style.MUTED)
    share = page.write(x + width, y + 51, f"{style.percent(confidence)} {mark}", 14, color=colour, weight="bold", ha="right")
    room = width - label_w - share.get_window_extent().width - 10
    style.shorten(page.write(x + label_w, y + 51, predicted, 14, color=colour, weight="bold"), room)


def _legend(page: _Page, y: float, *, any_right: bool) -> None:
    bar_w, bar_h, gap = 160, 14, 12
    words = page.write(_MARGIN_PX, y, "Evidence for the predicted class:  none", 14, color=style.MUTED)
    x = words.get_window_extent().x1 + gap
    ramp = np.linspace(0, 1, bar_w, dtype=np.float32)[None]
    page.show(x, y - bar_h + 1, bar_w, bar_h, np.full((1, bar_w, 3), 150, np.uint8), evidence=ramp)
    page.write(x + bar_w + gap, y, "strongest in this image", 14, color=style.MUTED)
    right_edge = page.width - _MARGIN_PX
    if any_right:
        words = page.write(right_edge, y, "✓ correct", 14, color=style.BLUE, weight="bold", ha="right")
        right_edge = words.get_window_extent().x0 - 24
    page.write(right_edge, y, "✗ mistake", 14, color=style.VERMILLION, weight="bold", ha="right")
