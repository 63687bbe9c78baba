"""Checks the types of the arguments that a Python program gives to the library."""

import functools
import inspect
import numbers
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pipeline.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with a check of its arguments against their annotations.

    Arrays are left to the function, which knows their dtype and shape. Anything that can be iterated counts
    as a sequence, except one text, one path and a mapping.

    Raises:
        UserError: (the returned function) names the argument, its value, and what it has to be.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                hints = typing.get_args(parameter.annotation)[0].__annotations__
                for key in value:
                    if key not in hints:
                        raise UserError(f"{key}: no argument has this name; give {', '.join(hints)}")
                    check_type(key, value[key], hints[key])
            else:
                check_type(name, value, parameter.annotation)
        return function(*args, **kwargs)

    return checked


def check_type(name: str, value: object, hint: Any) -> None:
    """Check one argument, or one field of an object, against its annotation.

    Raises:
        UserError: it is of another type.

    >>> check_type("indices", [3, "4"], Sequence[int])
    Traceback (most recent call last):
        ...
    pipeline.errors.UserError: indices[1]: give a whole number, not '4'
    """
    if not _fits(value, hint):
        shown = repr(value)
        shown = (
            shown if len(shown) <= 60 and "\n" not in shown else f"an object of type {type(value).__name__}"
        )
        raise UserError(f"{name}: give {_describe(hint)}, not {shown}")
    items = [choice for choice in _choices(hint) if typing.get_origin(choice) is Sequence]
    if items and isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_type(f"{name}[{number}]", item, typing.get_args(items[0])[0])


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _fits(value: object, hint: Any) -> bool:
    return any(_is_a(value, choice) for choice in _choices(hint))


def _is_a(value: object, hint: Any) -> bool:
    if hint in (None, types.NoneType):
        return value is None
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, Iterable) and not isinstance(value, str | bytes | os.PathLike | Mapping)
    if hint is int:
        return _is_whole_number(value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, os.PathLike)
    return not isinstance(hint, type) or hint.__module__ == "numpy" or isinstance(value, hint)


def _is_whole_number(value: object) -> bool:
    """True for an int, also one of numpy or torch, but not for a truth value."""
    if isinstance(value, bool) or getattr(value, "dtype", None) in (bool, "bool"):
        return False
    try:
        operator.index(typing.cast(typing.SupportsIndex, value))
    except TypeError:
        return False
    return True


def _describe(hint: Any) -> str:
    words = []
    for choice in _choices(hint):
        if choice in (None, types.NoneType):
            words.append("None")
        elif typing.get_origin(choice) is Sequence:
            words.append("a list")
        else:
            article = "an" if choice.__name__[0] in "AEIO" else "a"
            words.append(_WORDS.get(choice, f"{article} {choice.__name__}"))
    return " or ".join(words)
