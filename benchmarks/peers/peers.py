"""Rebuilds the baselines of others: pytorch-cifar's training step, and airbench's loader."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure.timing import Workload
from pipeline.config import ModelConfig
from pipeline.data import ImageSet, Splits
from pipeline.models import build_model


def has_airbench() -> bool:
    """Return True if the package airbench is installed."""
    try:
        import airbench  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return False
    return True


class PlainStep(Workload):
    """The training step of the repository pytorch-cifar as its users run it, on one batch on the device.

    It uses float32, NCHW, eager mode; plain SGD (0.1, momentum 0.9, weight decay 5e-4, torch's default
    implementation); and torch's default switches but `cudnn.benchmark = True`. Its loop reads the loss and
    the number of correct predictions back at every step. The network is ours: ResNet-18 with the CIFAR stem
    is the same in both.

    Args:
        name: of the variant.
        batch_size: 128 in that repository.
        readback: read the loss and the number back at every step, as its loop does.
        device: of the step.
        model: the network.
        image_size: in pixels.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        readback: bool,
        device: torch.device,
        model: ModelConfig,
        image_size: int,
    ):
        super().__init__(name, batch_size)
        self._readback = readback
        self._network = build_model(model, num_classes=10).to(device)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        self._criterion = nn.CrossEntropyLoss()
        generator = torch.Generator().manual_seed(0)
        self._inputs = torch.randn(batch_size, 3, image_size, image_size, generator=generator).to(device)
        self._targets = torch.randint(10, (batch_size,), generator=generator).to(device)
        self._loss_sum, self._correct = 0.0, 0

    def prepare(self) -> None:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True  # torch's defaults
        torch.backends.cuda.matmul.allow_tf32 = False

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._optimizer.zero_grad()
            outputs = self._network(self._inputs)
            loss = self._criterion(outputs, self._targets)
            loss.backward()
            self._optimizer.step()
            if self._readback:
                self._loss_sum += loss.item()
                self._correct += outputs.max(1)[1].eq(self._targets).sum().item()


class AirbenchLoader(Workload):
    """airbench's `CifarLoader`: flip, translate by up to `padding`, Cutout.

    It augments a whole epoch when the epoch begins, so windows must be whole epochs. It needs the data set as
    a file, and 32×32 images.

    Args:
        splits: with the training images.
        batch_size: images of a batch.
        padding, cutout: in pixels.
        device: a GPU.
    """

    def __init__(self, splits: Splits, batch_size: int, padding: int, cutout: int, device: torch.device):
        from airbench import CifarLoader  # type: ignore[import-not-found]

        assert isinstance(splits.train, ImageSet), "this loader is for images in memory"
        data = {
            "images": torch.from_numpy(splits.train.images.copy()),
            "labels": torch.from_numpy(splits.train.labels.copy()),
            "classes": list(splits.class_names),
        }
        augment = {"flip": True, "translate": padding, "cutout": cutout}
        with tempfile.TemporaryDirectory() as folder:
            torch.save(data, Path(folder) / "train.pt")
            loader = CifarLoader(folder, train=True, batch_size=batch_size, aug=augment, gpu=device)
        self.steps_per_epoch = len(loader)
        super().__init__("airbench", batch_size, lead_in=len(loader))
        self._batches = self._forever(loader)

    @staticmethod
    def _forever(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

    def run(self, steps: int) -> None:
        for _ in range(steps):
            next(self._batches)
