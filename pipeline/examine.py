"""What a trained network says of the test set, and where it looks in the images that it gets most wrong."""

from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from torch import nn

from pipeline.config import Config
from pipeline.data import Splits, build_loaders
from pipeline.evaluate import predict
from pipeline.explain import explain_images, select_images
from pipeline.models import cam_target_layer
from pipeline.predictions import Predictions
from pipeline.style import one_line

SHOWN_IMAGES = 20


def examine(
    model: nn.Module, config: Config, splits: Splits, device: torch.device, *, count: int = SHOWN_IMAGES, explain: bool = True
) -> Predictions:
    """Predict every test image, choose those worth a look, and map the evidence in them.

    Args:
        model: float32, eager, not wrapped, on the device; never the live, compiled or DDP one.
        config: the run's, for loader and batch size; the precision is float32 whatever it says.
        splits: the data set.
        device: of the model.
        count: images to choose: confident mistakes, then the least sure of the right ones.
        explain: make Grad-CAM maps, which takes some seconds to import.
    """
    float32 = config.model_copy(update={"precision": config.precision.model_copy(update={"mode": "fp32"})})
    logits = predict(model, build_loaders(float32, splits, device).test).numpy()
    test = splits.test
    shown = select_images(logits, test.labels, min(count, len(test)))
    images = np.ascontiguousarray(test.images[shown])
    maps = np.empty((0, *images.shape[1:3]), np.uint8)
    if explain:
        explained = explain_images(model, _normalised(images, splits, device), cam_target_layer(model, config.image_size))
        maps = np.round(255 * explained.maps).astype(np.uint8)
    names = ["" if test.sample_paths is None else one_line(test.sample_paths[i]) for i in shown]
    whole = Predictions.of(logits, test.labels, splits.class_names)
    return replace(whole, shown=shown, shown_names=np.array(names, np.str_), images=images, maps=maps)


def _normalised(images: np.ndarray, splits: Splits, device: torch.device) -> torch.Tensor:
    """(N, H, W, C) uint8 → (N, C, H, W) float32, as the loaders normalise."""
    mean, std = torch.tensor(splits.mean), torch.tensor(splits.std)
    scaled = (torch.from_numpy(images.copy()).float() / 255 - mean) / std
    return rearrange(scaled, "n h w c -> n c h w").to(device)
