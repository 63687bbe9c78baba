"""Reads and writes the registry of the weights that are shipped. Imports no torch.

`registry.json` describes each weights file in this folder by its name. A card, `NAME.md`, says the same to
people.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.atomic_io import read_json, sha256, write_json
from pipeline.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # no path, and no file name with a suffix
_REMEDY = "install the project again, or restore the file from git"
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class Inputs(_Frozen):
    """The inputs and outputs of a network.

    Attributes:
        class_names: in the order of the logits.
        mean, std: per channel, fractions of 1; pixels / 255 are normalised with them.
        image_size: height and width in pixels.
        crop: fraction of the resized shorter side that the centre crop keeps; None: nothing is cropped off.
    """

    class_names: tuple[str, ...] = Field(min_length=2)
    mean: tuple[float, ...] = Field(min_length=3, max_length=3)
    std: tuple[float, ...] = Field(min_length=3, max_length=3)
    image_size: int = Field(gt=0)
    crop: float | None = None


class Shipped(_Frozen):
    """Weights that are shipped: the last step of a run of a shipped recipe.

    Attributes:
        name: of the weights.
        file: name of the safetensors file in this folder; its convolutions and linear weights are float16.
        sha256: of that file.
        num_parameters: trainable parameters of the network.
        recipe: name of the recipe in `configs/`.
        config: values of the recipe, nested by section, without places of a machine.
        inputs: of the network.
        data: name of the data set that the network was trained and tested on.
        seed: of the run.
        commit: of the code that trained it.
        accuracy: of the file's weights on the test set, a fraction; computed in float32, with one view.
        accuracy_float32: likewise, of the weights of the run, before they were rounded to half precision.
        accuracy_in_training: of the last step, as the run recorded it, in the precision of the training.
        num_test_images: that the accuracies are of.
        licence: SPDX identifier.
    """

    name: str = Field(exclude=True)
    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_parameters: int
    recipe: str
    config: dict[str, Any]
    inputs: Inputs
    data: str
    seed: int
    commit: str
    accuracy: Fraction
    accuracy_float32: Fraction
    accuracy_in_training: Fraction
    num_test_images: int
    licence: str

    @property
    def path(self) -> Path:
        """The weights file. It is not verified."""
        return folder() / self.file

    @property
    def card(self) -> Path:
        """The model card."""
        return folder() / f"{self.name}.md"

    def verified_path(self) -> Path:
        """Return the weights file, after comparing it with its checksum.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            digest = sha256(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        if digest != self.sha256:
            raise UserError(f"{self.path}: damaged (its SHA-256 is not the registry's); {_REMEDY}")
        return self.path


_ENTRIES = TypeAdapter(dict[str, dict[str, Any]])
_WEIGHTS = TypeAdapter(dict[str, Shipped])


def folder() -> Path:
    """Return the folder of the registry, the weights and the cards."""
    return Path(__file__).parent


def is_name(text: str) -> bool:
    """Return True if weights may have this name.

    >>> is_name("cifar10_resnet20"), is_name("runs/latest"), is_name("weights.pth")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def read_registry() -> dict[str, Shipped]:
    """Return all weights that are shipped, by name.

    Raises:
        UserError: the registry is missing or damaged.
    """
    file = folder() / "registry.json"
    try:
        entries = _ENTRIES.validate_python(read_json(file, _REMEDY))
        return _WEIGHTS.validate_python({name: {**entry, "name": name} for name, entry in entries.items()})
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "the whole file"
        raise UserError(f"{file}: not a registry of weights (see {place}); {_REMEDY}") from None


def write_registry(weights: Mapping[str, Shipped]) -> Path:
    """Write registry.json, sorted by name, and return its path.

    Raises:
        OSError: the file cannot be written.
    """
    file = folder() / "registry.json"
    write_json(file, {name: weights[name].model_dump(mode="json") for name in sorted(weights)})
    return file


def find_shipped(path: str | Path) -> Shipped | None:
    """Find the weights that a person names in place of a file or a folder.

    Args:
        path: a name. A file or folder that exists is never a name.

    Returns:
        None if no weights have this name.

    Raises:
        UserError: the registry is missing or damaged.
    """
    text = str(path)
    if not is_name(text) or Path(text).exists():
        return None
    return read_registry().get(text)


def list_names() -> str:
    """Return the names of all weights as text for a message; empty if none are shipped."""
    return ", ".join(read_registry())
