"""Reads and writes `about.json` in a folder of images: what the images are, for records of measurements."""

from pathlib import Path

from pydantic import Field, ValidationError

from benchmarks.publish.strict import Strict
from pipeline.atomic_io import read_json, write_json
from pipeline.config import Config, FileData, path_of
from pipeline.errors import UserError

ABOUT = "about.json"
LONGEST_NAME = 80  # characters


class AboutFolder(Strict):
    """The images of a folder, in words.

    Attributes:
        name: a record calls the images so.
        made_by: the command that made them; None for images that were not made.
        images: number of images, by part.
        mean_bytes: of a file.
        median_size: width and height of an image in pixels.
        note: what a reader of a figure should know of them.
    """

    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    made_by: str | None = None
    images: dict[str, int] = Field(default_factory=dict)
    mean_bytes: int | None = None
    median_size: tuple[int, int] | None = None
    note: str = ""

    @classmethod
    def of(cls, root: Path) -> "AboutFolder | None":
        """Read the file in a folder; None if there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = root / ABOUT
        if not path.is_file():
            return None
        try:
            return cls.model_validate(read_json(path, "make the folder again, or remove the file"))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{path}: does not say what the images are ({field}: {first['msg']}); make the folder again, "
                "or remove the file"
            ) from None

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))


def name_of_images(config: Config) -> str | None:
    """Return the name that `about.json` in `data.root` gives to the images; None if there is no such file."""
    if not isinstance(config.data, FileData):
        return None
    about = AboutFolder.of(path_of("data.root", config.data.root))
    return about.name if about is not None else None
