"""The base of every section of a recipe, and the types of keys that several sections share."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

_MAX_TEXT = 4096  # characters, as in Linux's PATH_MAX


def as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def as_pairs(value: object) -> object:
    return tuple(as_tuple(item) for item in value) if isinstance(value, list) else value


class Section(BaseModel):
    """Base of every section: unknown keys and silent conversions are errors, values never change after loading."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: object) -> object:
        """Text that no file system takes for a name is refused here, where its key is known."""
        if isinstance(value, str) and ("\0" in value or len(value) > _MAX_TEXT):
            raise ValueError(
                f"holds a NUL character or is longer than {_MAX_TEXT} characters; give a shorter, plain text"
            )
        return value
