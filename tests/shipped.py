"""Check shipped weights: the file, the code of the model card, the record of the recipe, the accuracy."""

import math
import re
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.publish.model_card import render
from benchmarks.publish.records import Record
from pipeline.inference.predict_files import predict_files
from pipeline.inference.trained_model import load_trained
from pipeline.pretrained.registry import Shipped

MOST_LOST_BY_ROUNDING = 0.0002  # of the accuracy
# The record is of fp16 on a GPU, the card of float32 on some machine: some images of 10,000 change sides.
FROM_RECORD = 0.002
FROM_CARD = 0.0002  # of the accuracy: the sums of another CPU change two images of 10,000


def logits_of_card(shipped: Shipped, images: torch.Tensor) -> torch.Tensor:
    """Return the logits of the network that the code of the card builds, (N, K) float32.

    The code is run as a reader runs it who has the card and the weights file and nothing else.

    Args:
        shipped: the weights, with their card beside them.
        images: (N, 3, H, W) float32, RGB from 0 to 1.
    """
    code = re.findall(r"^```python\n(.*?)^```", shipped.card.read_text(), re.S | re.M)
    assert len(code) == 1 and "pipeline" not in code[0]
    names: dict[str, Any] = {}
    with chdir(shipped.path.parent):
        exec(code[0], names)
    assert names["logits"].shape == (1, len(shipped.inputs.class_names))
    with torch.no_grad():
        return names["network"]((images - names["mean"]) / names["std"])


def check_weights(shipped: Shipped) -> None:
    """Check the file, its entry and its card, with a few random images."""
    trained = load_trained(shipped.name, device="cpu")  # compares the checksum
    assert sum(value.numel() for value in trained.model.parameters()) == shipped.num_parameters
    size, generator = shipped.inputs.image_size, np.random.default_rng(0)
    pixels = generator.integers(256, size=(4, size, size, 3), dtype=np.uint8)
    logits = trained.logits(pixels)
    assert logits.shape == (4, len(shipped.inputs.class_names)) and np.isfinite(logits).all()
    assert shipped.accuracy_float32 - shipped.accuracy <= MOST_LOST_BY_ROUNDING + 1e-9
    assert shipped.card.read_text() == render(shipped)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    of_card = logits_of_card(shipped, images).numpy()
    # the mean on the card has six digits
    assert np.abs(of_card - logits).max() < 1e-4 * np.abs(logits).max()


def check_record(shipped: Shipped, records: Sequence[Record]) -> None:
    """Compare weights with the record of their recipe on their data that their run is one of."""
    of_the_run = [
        record
        for record in records
        if record.benchmark == "recipe"
        and (record.variant, record.data, record.commit) == (shipped.recipe, shipped.data, shipped.commit)
        and shipped.seed in (record.seeds or ())
    ]
    assert of_the_run, f"{shipped.name}: no record of {shipped.recipe} has its data, commit and seed"
    for record in of_the_run:
        assert record.parameters in (None, shipped.num_parameters)
        assert record.accuracy is not None
        assert abs(shipped.accuracy - record.accuracy) <= _furthest_from_mean(record) + FROM_RECORD


def _furthest_from_mean(record: Record) -> float:
    """Return how far one of n values can be from their mean, by their standard deviation."""
    n = record.accuracy_n or 1
    return (record.accuracy_std or 0.0) * (n - 1) / math.sqrt(n)


def check_accuracy(shipped: Shipped, root: Path) -> None:
    """Predict ROOT/test/CLASS/*.png, the whole test set, and compare with the recorded accuracy."""
    trained = load_trained(shipped.name)
    correct = seen = 0
    for label, class_name in enumerate(shipped.inputs.class_names):
        files = sorted((root / "test" / class_name).glob("*.png"))
        predictions, bad = predict_files(trained, files, top=1)
        assert not bad
        correct += sum(prediction.classes[0] == label for prediction in predictions)
        seen += len(predictions)
    assert seen == shipped.num_test_images
    assert abs(correct / seen - shipped.accuracy) <= FROM_CARD + 1e-9
