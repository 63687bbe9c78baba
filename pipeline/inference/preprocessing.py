"""Describes the inputs and outputs of a network, so that a prediction needs only the run folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from pydantic import TypeAdapter, ValidationError

from pipeline.atomic_io import read_json, write_json
from pipeline.config import Config, FileData
from pipeline.data import FileSet, Splits, check_image_size
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.file_set import read_centre
from pipeline.data.datasets.image_set import check_pixels
from pipeline.data.files.decode import decode_image, images_of_any_size
from pipeline.data.files.many import try_all
from pipeline.data.sampling.resized_crops import CentreView
from pipeline.errors import UserError


@dataclass(frozen=True)
class InputSpec:
    """The preprocessing of a network's images, and the names of its outputs.

    Attributes:
        class_names: in the order of the logits.
        mean, std: per channel, fractions of 1; pixels / 255 are normalised with them.
        image_size: height and width in evaluation, in pixels.
        crop: fraction of the resized shorter side that the centre crop of evaluation keeps, for images that
            are streamed from their files; None: images are kept decoded, and nothing is cropped off.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    crop: float | None = None

    @classmethod
    def of(cls, config: Config, splits: Splits) -> "InputSpec":
        """Describe the network of a config on its data set.

        Raises:
            UserError: images of another size than the config's.
        """
        check_image_size(config, splits)
        crop = 1.0 if isinstance(splits.test, FileSet) else None  # `under` sets the fraction
        names, mean, std = tuple(splits.class_names), tuple(splits.mean), tuple(splits.std)
        # the statistics of arrays are not those of the config's data set
        return replace(cls(names, mean, std, config.image_size, crop).under(config), mean=mean, std=std)

    def under(self, config: Config) -> "InputSpec":
        """Return the description with the sizes and, if the config gives them, the statistics of a config."""
        data = config.data
        statistics = (
            {"mean": data.mean, "std": data.std} if data.mean is not None and data.std is not None else {}
        )
        if self.crop is None:
            return replace(self, image_size=config.image_size, **statistics)
        if not isinstance(data, FileData):  # a data set that stands in for the run's streamed folder
            return replace(self, **statistics)
        return replace(
            self, image_size=data.eval_image_size or data.image_size, crop=data.eval_crop, **statistics
        )

    @classmethod
    def read(cls, path: Path) -> "InputSpec":
        """Read input.json.

        Raises:
            UserError: the file is damaged.
        """
        remedy = "remove it, and the data set is read instead"
        try:
            spec = _SAVED.validate_python(read_json(path, remedy))
        except ValidationError as error:
            wrong = ", ".join(dict.fromkeys(str(item["loc"][0]) for item in error.errors() if item["loc"]))
            raise UserError(
                f"{path}: does not describe a network's inputs (see {wrong or 'the whole file'}); {remedy}"
            ) from None
        if not (spec.class_names and len(spec.mean) == len(spec.std) == NUM_CHANNELS and spec.image_size > 0):
            raise UserError(
                f"{path}: has no classes, no size, or not {NUM_CHANNELS} means and deviations; {remedy}"
            )
        return spec

    def write(self, path: Path) -> None:
        """Write input.json."""
        write_json(path, asdict(self))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def resized(self) -> int:
        """The shorter side in pixels to which images are resized before their centre is cropped."""
        return self.image_size if self.crop is None else CentreView(self.image_size, self.crop).resized

    def normalise(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the network's input as the loaders make it: (N, H, W, C) uint8 → (N, C, H, W) float32, CPU.

        Raises:
            UserError: an array of another dtype or shape.

        >>> spec = InputSpec(("cat", "dog"), mean=(0.5,) * 3, std=(0.25,) * 3, image_size=1)
        >>> spec.normalise(np.full((1, 1, 1, 3), 255, np.uint8)).flatten()
        tensor([2., 2., 2.])
        """
        check_pixels(pixels)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        scaled = (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255 - mean) / std
        return rearrange(scaled, "n h w c -> n c h w")

    def read_images(
        self, files: Sequence[Path], num_threads: int = 1
    ) -> tuple[np.ndarray, list[tuple[Path, str]]]:
        """Read image files of any size, resized and cropped as the run's evaluation images are.

        Returns:
            (N, image_size, image_size, 3) uint8, and the files that cannot be read with their reasons; the
            rows of those files are zero.
        """
        pixels = np.zeros((len(files), self.image_size, self.image_size, 3), np.uint8)
        view = None if self.crop is None else CentreView(self.image_size, self.crop)

        def show(row: int) -> None:
            file = files[row]
            pixels[row] = decode_image(file, self.image_size) if view is None else read_centre(file, view)

        bad = try_all(range(len(files)), show, num_threads, "reading images", within=images_of_any_size)
        return pixels, [(files[number], reason) for number, reason in bad.items()]


_SAVED = TypeAdapter(InputSpec)
