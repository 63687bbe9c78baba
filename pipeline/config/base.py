"""Defines the base of every section of a recipe, and the mark of a section whose keys differ by kind."""

import reprlib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    PlainValidator,
    field_validator,
)

_MAX_TEXT = 4096  # characters, as in Linux's PATH_MAX


class Section(BaseModel):
    """Base of every section: unknown keys and silent conversions are errors; values never change."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: object) -> object:
        """Refuse text that no file system takes for a name here, where its key is known."""
        if isinstance(value, str) and ("\0" in value or len(value) > _MAX_TEXT):
            raise ValueError(
                f"holds a NUL character or is longer than {_MAX_TEXT} characters; give a shorter, plain text"
            )
        return value


def _as_path(value: Any) -> str:
    """Return the path of a file or folder; pydantic's own `str` refuses names whose bytes are not UTF-8."""
    if not isinstance(value, str):
        given = reprlib.repr(value)
        quotes = f"; a name that looks like a number stands in quotes: '\"{given}\"'"
        hint = quotes if isinstance(value, int | float) else ""
        raise ValueError(f"input should be a valid string, got {given}{hint}")
    if not value:
        raise ValueError("input should be a path, got an empty text")
    return value


def _as_optional_path(value: Any) -> str | None:
    return None if value is None else _as_path(value)


FilePath = Annotated[str, PlainValidator(_as_path)]
OptionalFilePath = Annotated[str | None, PlainValidator(_as_optional_path)]


@dataclass(frozen=True)
class Kinds:
    """Marks a union of sections, of which the value of one key, the kind, selects one.

    It stands in `Annotated[A | B, Field(discriminator=KEY), Kinds(KEY, …)]`, and lets a recipe omit that key.

    Attributes:
        key: the key that names the kind.
        default: the kind where a recipe does not give the key.
        meaning: description of the key.
    """

    key: str
    default: str
    meaning: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        def name_default(values: Any) -> Any:
            return {self.key: self.default, **values} if isinstance(values, dict) else values

        return BeforeValidator(name_default).__get_pydantic_core_schema__(source, handler)


def as_tuple(value: object) -> object:
    """Return a list of a recipe as a tuple, and anything else unchanged."""
    return tuple(value) if isinstance(value, list) else value


def as_pairs(value: object) -> object:
    """Return a list of lists of a recipe as a tuple of tuples, and anything else unchanged."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list) else value
