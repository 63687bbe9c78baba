"""Checks labels that are texts, as list files and shards hold them."""

import re
from collections.abc import Collection

_FRACTION = re.compile(r"[-+]?[0-9]*\.[0-9]+|[-+]?(nan|inf(inity)?)", re.IGNORECASE)


def fraction_among(labels: Collection[str]) -> str | None:
    """Return a label such as 1.5 or nan, if others are whole numbers: it is no name of a class.

    >>> fraction_among(["0", "1.5"]), fraction_among(["0", "a"]), fraction_among(["0.5", "a"])
    ('1.5', None, None)
    """
    if not any(re.fullmatch(r"[0-9]+", label) for label in labels):
        return None
    return min(filter(_FRACTION.fullmatch, labels), default=None)
