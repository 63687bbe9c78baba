"""Turns the text of a key into a path: `~` is the home folder."""

from pathlib import Path

from pipeline.errors import UserError


def is_utf8(name: str) -> bool:
    """Return False if a byte of a file name is not UTF-8: libraries outside Python may refuse it."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def name_of(recipe: str | Path) -> str:
    """Return the name that a recipe gives to its runs: its file's name without the suffix, in UTF-8.

    It is `recipe` if the recipe came by a pipe.

    >>> name_of("configs/quickstart.yaml")
    'quickstart'
    """
    if str(recipe).startswith(("/dev/", "/proc/")):
        return "recipe"
    stem = Path(recipe).stem
    return stem if is_utf8(stem) else stem.encode("utf-8", "replace").decode().replace("?", "_")


def path_of(key: str, text: str) -> Path:
    """Return the path that a key of the recipe gives.

    The shell replaces `~` only at the start of a word, not in `data.root=~/images`.

    Args:
        key: dotted, for the message.
        text: its value.

    Raises:
        UserError: the path begins with `~`, and that home folder is not known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user, or a user without name and HOME
        home, slash, _ = text.partition("/")
        raise UserError(
            f"{key}: {text}: the home folder {home}{slash} is not known; give the path without ~"
        ) from None
