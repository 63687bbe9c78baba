"""Makes saliency maps with the grad-cam library."""

import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.explain.library import import_grad_cam
from pipeline.run.progress import shown


class Method(NamedTuple):
    """A method of the grad-cam library: its class there, and its usual name."""

    library_class: str
    title: str


# Left out: methods without a target layer or class (FullGrad, FinerCAM), methods that change the network
# during the explanation (AblationCAM), and methods with random weights.
METHODS = {
    "gradcam": Method("GradCAM", "Grad-CAM"),  # Selvaraju et al. 2017, arXiv:1610.02391
    "gradcam++": Method("GradCAMPlusPlus", "Grad-CAM++"),  # Chattopadhay et al. 2018, arXiv:1710.11063
    "xgradcam": Method("XGradCAM", "XGrad-CAM"),  # Fu et al. 2020, arXiv:2008.02312
    "hirescam": Method("HiResCAM", "HiResCAM"),  # Draelos and Carin 2020, arXiv:2011.08891
    "layercam": Method("LayerCAM", "LayerCAM"),  # Jiang et al. 2021, doi:10.1109/TIP.2021.3089943
    "eigencam": Method("EigenCAM", "Eigen-CAM"),  # Muhammad and Yeasin 2020, arXiv:2008.00299
    "eigengradcam": Method("EigenGradCAM", "Eigen-Grad-CAM"),  # Eigen-CAM of activations times gradients
    # Wang et al. 2020, arXiv:1910.01279; a forward pass for each channel
    "scorecam": Method("ScoreCAM", "Score-CAM"),
}
CLASS_AGNOSTIC = frozenset({"eigencam"})


@dataclass(frozen=True)
class Explanations:
    """The predictions of a model for N images, with saliency maps.

    Attributes:
        maps: (N, H, W) float32 in [0, 1], each scaled by its own maximum; all zero where no region raises the
            logit of the class, or all regions raise it equally.
        probabilities: (N, K) float32, the softmax of the logits.
        predicted: (N,) int64, the most probable class.
        classes: (N,) int64, the explained class.
    """

    maps: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    classes: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32, the probability of the predicted class."""
        return self.probabilities[np.arange(len(self.predicted)), self.predicted]


def explain_images(
    model: nn.Module,
    images: Tensor,
    target_layer: nn.Module,
    *,
    method: str = "gradcam",
    classes: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 64,
) -> Explanations:
    """Make saliency maps for a class with the grad-cam library.

    Grad-CAM (Selvaraju et al. 2017, section 3): the gradient of the class's logit, averaged over the
    positions of `target_layer`'s output, weighs that output's channels; the positive part of their sum,
    scaled to [0, 1] and resized bilinearly to the image, is the map. The other methods have other weights.
    Some methods project on a principal component, whose sign has no meaning. The map then has the sign that
    makes its largest value positive (Chung and Ying 2025, doi:10.3390/app15137562, equation 13).

    Args:
        model: float32, eager, not wrapped; from images to (N, K) logits. Its modes, gradients and hooks are
            restored.
        images: (N, 3, H, W) float32, normalised as in training, on any device.
        target_layer: a module of `model` with a (N, C, h, w) output, from `find_layer`.
        method: a key of `METHODS`. `eigencam` shows the strongest activity of the layer, whatever the class.
        classes: the class to explain for each image; by default the predicted one.
        batch_size: images in one forward and backward pass.

    Raises:
        UserError: an unknown method, or logits that are not finite, as after a diverged training.
    """
    _assert_explainable(model, target_layer)
    assert images.ndim == 4 and len(images) > 0, images.shape
    assert classes is None or len(classes) == len(images), (len(classes), len(images))
    device = next(model.parameters()).device
    results = []
    with _frozen(model), torch.autocast(device.type, enabled=False), np.errstate(invalid="ignore"):
        # The library keeps a view of the layer's output; a copy stays right if the next operation is in place
        # (`out += shortcut`, ReLU).
        cam = _library_class(method)(model, [target_layer], reshape_transform=torch.clone)
        try:  # not `with cam`: its exit swallows an IndexError
            for start in shown(range(0, len(images), batch_size), "maps"):
                selected = slice(start, start + batch_size)
                batch = images[selected].detach().to(device, torch.float32, copy=True)
                results.append(_explain_batch(cam, batch, None if classes is None else classes[selected]))
        finally:
            cam.activations_and_grads.release()
    maps, probabilities = (np.concatenate(parts) for parts in zip(*results, strict=True))
    predicted = probabilities.argmax(axis=1)
    explained = predicted if classes is None else np.asarray(classes, dtype=np.int64)
    return Explanations(maps.astype(np.float32), probabilities, predicted, explained)


def _explain_batch(
    cam: Any, images: Tensor, classes: Sequence[int] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps and the probabilities of one batch."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = None if classes is None else [ClassifierOutputTarget(int(label)) for label in classes]
    maps = cam(images.requires_grad_(), targets)  # parameters are frozen: gradients flow to the input alone
    logits = cam.outputs.detach()
    if not torch.isfinite(logits).all():
        raise UserError(
            "explain: the model's logits are not finite, its training diverged; choose an earlier checkpoint"
        )
    return maps, logits.softmax(dim=1).cpu().numpy()


def check_method(method: str) -> str:
    """Return METHOD if it exists.

    Raises:
        UserError: there is no such method; lists the methods.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f", did you mean {near[0]}" if near else ""
        raise UserError(f"method: there is no {method!r}{hint}; methods are {', '.join(METHODS)}")
    return method


def _library_class(method: str) -> Any:
    """Return the library's class of a method, with our corrections."""
    library = import_grad_cam()
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction

    base = getattr(library, METHODS[check_method(method)].library_class)

    if method == "scorecam":

        class Quiet(base):
            """The library's method without a progress bar for each image."""

            def get_cam_weights(self, *arguments: Any) -> Any:
                with redirect_stderr(io.StringIO()):
                    return super().get_cam_weights(*arguments)

        return Quiet

    if method in ("eigencam", "eigengradcam"):

        class Signed(base):
            """The library's projection with a defined sign, which the library leaves to chance."""

            # the parameters: input, layer, targets, activations, gradients, eigen_smooth
            def get_cam_image(
                self, _: Any, __: Any, ___: Any, activations: Any, grads: Any, ____: bool
            ) -> Any:
                projected = activations if method == "eigencam" else grads * activations
                return get_2d_projection_with_sign_correction(projected)

        return Signed

    return base


def _assert_explainable(model: nn.Module, target_layer: nn.Module) -> None:
    modules = list(model.modules())
    assert any(module is target_layer for module in modules), "the target layer is not a module of the model"
    assert all(p.dtype == torch.float32 for p in model.parameters()), "Grad-CAM needs float32 parameters"
    assert not isinstance(model, nn.parallel.DistributedDataParallel), (
        "Grad-CAM hangs on a DDP model: give the module inside"
    )
    eager = all(m._compiled_call_impl is None and not hasattr(m, "_orig_mod") for m in modules)
    assert eager, "Grad-CAM needs an eager model"


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Set eval mode and gradients for the input only; afterwards restore modes and gradients."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None  # saved above: the library clears gradients
        with torch.inference_mode(False), torch.enable_grad():  # the caller may have switched both off
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
