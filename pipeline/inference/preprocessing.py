"""What a network takes and what its outputs mean: all that a prediction needs besides the weights, and so kept in the run folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from pipeline.config import Config
from pipeline.data import FileSet, Splits
from pipeline.data.datasets.file_set import read_centre
from pipeline.data.files.decode import decode_image, images_of_any_size, try_all
from pipeline.data.sampling.resized_crops import CentreView
from pipeline.errors import UserError

INPUT_FILE = "input.json"


@dataclass(frozen=True)
class InputSpec:
    """The images that a network was trained on, and the names of its outputs.

    Attributes:
        class_names: in the order of the logits.
        mean, std: per channel, fractions of 1, with which pixels / 255 are normalised.
        image_size: height and width in evaluation, in pixels.
        crop: share of the resized shorter side that the centre crop of evaluation keeps, where images are
            streamed from their files;
            None: images are kept decoded, and the crop keeps all of it.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    crop: float | None = None

    @classmethod
    def of(cls, config: Config, splits: Splits) -> "InputSpec":
        streamed = isinstance(splits.test, FileSet)
        recorded = cls(
            tuple(splits.class_names),
            tuple(splits.mean),
            tuple(splits.std),
            config.image_size,
            1.0 if streamed else None,
        )
        return recorded.under(config)

    def under(self, config: Config) -> "InputSpec":
        """The same network's, with the sizes and, where it gives them, the statistics of a config."""
        data = config.data
        statistics = (
            {"mean": data.mean, "std": data.std} if data.mean is not None and data.std is not None else {}
        )
        if self.crop is None:
            return replace(self, image_size=config.image_size, **statistics)
        return replace(
            self, image_size=data.eval_image_size or data.image_size, crop=data.eval_crop, **statistics
        )

    @classmethod
    def read(cls, path: Path) -> "InputSpec":
        """Read what `write` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            crop = saved.get("crop")  # unknown to runs of before folders were streamed
            return cls(
                tuple(saved["class_names"]),
                tuple(saved["mean"]),
                tuple(saved["std"]),
                int(saved["image_size"]),
                None if crop is None else float(crop),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}: {error}); remove it, and the data set is read instead"
            ) from None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def resized(self) -> int:
        """The shorter side, in pixels, that images are resized to before their centre is cropped."""
        return self.image_size if self.crop is None else CentreView(self.image_size, self.crop).resized

    def normalise(self, pixels: np.ndarray) -> torch.Tensor:
        """The network's input, as the loaders make it: (N, H, W, C) uint8 → (N, C, H, W) float32 on the CPU.

        >>> spec = InputSpec(("cat", "dog"), mean=(0.5,) * 3, std=(0.25,) * 3, image_size=1)
        >>> spec.normalise(np.full((1, 1, 1, 3), 255, np.uint8)).flatten()
        tensor([2., 2., 2.])
        """
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        scaled = (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255 - mean) / std
        return rearrange(scaled, "n h w c -> n c h w")

    def read_images(
        self, files: Sequence[Path], num_threads: int = 1
    ) -> tuple[np.ndarray, list[tuple[Path, str]]]:
        """Image files of any size, decoded, resized and cropped as the run's own evaluation images are.

        Returns:
            (N, image_size, image_size, 3) uint8, and the files that cannot be read, with the reason; their
            rows are zero.
        """
        pixels = np.zeros((len(files), self.image_size, self.image_size, 3), np.uint8)
        view = None if self.crop is None else CentreView(self.image_size, self.crop)

        def show(row: int) -> None:
            pixels[row] = (
                decode_image(files[row], self.image_size) if view is None else read_centre(files[row], view)
            )

        with images_of_any_size():
            bad = try_all(range(len(files)), show, num_threads, "reading images")
        return pixels, [(files[number], reason) for number, reason in bad.items()]
