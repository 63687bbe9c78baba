"""Reads the file that gives readable names to the classes, `data.class_names`."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.files.listing import name_classes
from pipeline.errors import UserError


def read_class_names(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Read the names of the classes.

    The first word of a line is a class as in the listing, and the rest is its name. If the line holds a tab,
    the class is everything before the first tab. Lines for other classes are skipped.

    Raises:
        UserError: the file cannot be read, or a class is not in it.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.class_names: cannot read {path} ({error}); "
            "write a line `CLASS name` for each class, in UTF-8"
        ) from None
    split = [line.strip().split("\t" if "\t" in line else None, 1) for line in lines if line.strip()]
    names = {pair[0].strip(): pair[-1].strip() for pair in split}
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f"data.class_names: {path} has no line for {name_classes(missing)}; add `CLASS name` lines"
        )
    return tuple(names[name] for name in classes)
