"""Checks durations (`20ep`, `500st`, `10%`) and sizes (`8GiB`), and turns them into numbers."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ep|st|%)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(KiB|MiB|GiB|TiB)", re.ASCII)
_SIZE_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _as_text(value: object) -> object:
    """Return a bare number as text: it lacks a unit, and the message about that names the units."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _check_duration(text: str) -> str:
    match = _DURATION.fullmatch(text)
    if match is None:
        forms = "write epochs as 20ep, optimizer steps as 500st, a share of the run as 10%"
        raise ValueError(f"{text!r} is not a duration: {forms}")
    amount, unit = match.groups()
    if len(amount) > 15:
        raise ValueError(f"{text!r} is longer than any run: write epochs as 20ep, optimizer steps as 500st")
    if unit == "st" and "." in amount:
        raise ValueError(f"{text!r} is not a whole number of steps: write {round(float(amount))}st")
    if unit == "%" and float(amount) > 100:
        raise ValueError(f"{text!r} is more than the whole run: write 100% or less")
    return text


def _check_run_length(text: str) -> str:
    if text.endswith("%"):
        raise ValueError(
            f"{text!r} cannot be a share of the run: write the length of the run as 20ep or 500st"
        )
    if float(text[:-2]) == 0:
        raise ValueError(f"{text!r} trains nothing: write at least 1st")
    return text


def _check_interval(text: str) -> str:
    if float(text.removesuffix("%").removesuffix("ep").removesuffix("st")) == 0:
        raise ValueError(f"{text!r} has no length: write at least 1st")
    return text


def _check_size(text: str) -> str:
    if _SIZE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a size: write a number and KiB, MiB, GiB or TiB, such as 8GiB")
    return text


Duration = Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_duration)]
RunLength = Annotated[Duration, AfterValidator(_check_run_length)]
Interval = Annotated[Duration, AfterValidator(_check_interval)]
Size = Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_size)]


def to_steps(duration: str, steps_per_epoch: int, total_steps: int | None = None) -> int:
    """Return the optimizer steps that a duration lasts, rounded to the nearest whole step.

    Args:
        duration: text that the `Duration` type has accepted.
        steps_per_epoch: optimizer steps in one epoch.
        total_steps: optimizer steps in the run; needed for a share (`10%`) only.

    Returns:
        The number of optimizer steps. A duration above zero is at least one step.

    >>> to_steps("2ep", steps_per_epoch=97)
    194
    >>> to_steps("5%", steps_per_epoch=97, total_steps=1000)
    50
    """
    match = _DURATION.fullmatch(duration)
    assert match is not None, f"unchecked duration {duration!r}"
    amount, unit = float(match[1]), match[2]
    if unit == "%":
        assert total_steps is not None, f"{duration} needs the length of the run"
    scale = {"ep": steps_per_epoch, "st": 1, "%": (total_steps or 0) / 100}[unit]
    return max(round(amount * scale), 1) if amount > 0 else 0


def to_bytes(size: str) -> int:
    """Return the bytes in a size.

    >>> to_bytes("1.5KiB")
    1536
    """
    match = _SIZE.fullmatch(size)
    assert match is not None, f"unchecked size {size!r}"
    return round(float(match[1]) * _SIZE_UNITS[match[2]])
