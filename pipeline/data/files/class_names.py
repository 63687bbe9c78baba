"""Reads the file that gives readable names to the classes, `data.class_names`."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.files.listing import name_classes
from pipeline.data.files.paths import printable
from pipeline.errors import UserError


def read_class_names(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Read the names of the classes.

    The first word of a line is a class as in the listing, and the rest is its name. If the line holds a tab,
    the class is everything before the first tab. Lines for other classes are skipped.

    Raises:
        UserError: the file cannot be read, or a class is not in it, or stands in it twice with two names.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.class_names: cannot read {path} ({error}); "
            "write a line `CLASS name` for each class, in UTF-8"
        ) from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        pair = line.strip().split("\t" if "\t" in line else None, 1)
        label, name = pair[0].strip(), pair[-1].strip()
        if names.setdefault(label, name) != name and label in classes:
            raise UserError(
                f"data.class_names: {path}:{number}: a second name for class {printable(label)}, "
                f"{printable(name)} after {printable(names[label])}; remove one of the lines"
            )
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f"data.class_names: {path} has no line for {name_classes(missing)}; add `CLASS name` lines"
        )
    return tuple(names[name] for name in classes)
