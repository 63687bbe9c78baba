"""What a network takes and what its outputs mean: all that a prediction needs besides the weights, and so kept in the run folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from pipeline.config import Config
from pipeline.data import Splits
from pipeline.data.decode import decode_files
from pipeline.errors import UserError

INPUT_FILE = "input.json"


@dataclass(frozen=True)
class InputSpec:
    """The images that a network was trained on, and the names of its outputs.

    Attributes:
        class_names: in the order of the logits.
        mean, std: per channel, fractions of 1, with which pixels / 255 are normalised.
        image_size: height and width in pixels.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int

    @classmethod
    def of(cls, config: Config, splits: Splits) -> "InputSpec":
        return cls(tuple(splits.class_names), tuple(splits.mean), tuple(splits.std), config.image_size)

    @classmethod
    def read(cls, path: Path) -> "InputSpec":
        """Read what `write` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(saved["class_names"]), tuple(saved["mean"]), tuple(saved["std"]), int(saved["image_size"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}: {error}); remove it, and the data set is read instead"
            ) from None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def normalise(self, pixels: np.ndarray) -> torch.Tensor:
        """The network's input, as the loaders make it: (N, H, W, C) uint8 → (N, C, H, W) float32 on the CPU.

        >>> spec = InputSpec(("cat", "dog"), mean=(0.5,) * 3, std=(0.25,) * 3, image_size=1)
        >>> spec.normalise(np.full((1, 1, 1, 3), 255, np.uint8)).flatten()
        tensor([2., 2., 2.])
        """
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        scaled = (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255 - mean) / std
        return rearrange(scaled, "n h w c -> n c h w")

    def read_images(self, files: Sequence[Path], num_threads: int = 1) -> tuple[np.ndarray, list[tuple[Path, str]]]:
        """Image files of any size, decoded, resized and cropped as the run's own evaluation images are.

        Returns:
            (N, image_size, image_size, 3) uint8, and the files that cannot be read, with the reason; their rows are zero.
        """
        pixels = np.zeros((len(files), self.image_size, self.image_size, 3), np.uint8)
        bad = decode_files(files, pixels, num_threads, "reading images")
        return pixels, [(files[number], reason) for number, reason in bad.items()]
