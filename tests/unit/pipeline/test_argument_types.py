"""Tests the check of arguments against their annotations."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, Unpack

import numpy as np
import pytest
import torch

from pipeline.argument_types import typed
from pipeline.errors import UserError


class Keywords(TypedDict, total=False):
    layer: str | None
    count: int


@typed
def work(
    path: str | Path,
    indices: Sequence[int] = (),
    share: float | None = None,
    images: np.ndarray | None = None,
    *,
    quiet: bool = False,
    **keywords: Unpack[Keywords],
) -> tuple[Any, ...]:
    """Return the arguments."""
    return path, list(indices), share, images, quiet, keywords


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": "a"},
        {"path": PurePosixPath("a"), "indices": [1, np.int64(2), torch.tensor(3)]},
        {"path": Path("a"), "indices": np.arange(3), "share": 1},
        {"path": "a", "indices": (number for number in (1, 2)), "share": np.float32(0.5)},
        {"path": "a", "images": [[1]], "layer": None, "count": 3},
    ],
    ids=["path alone", "list", "array", "generator", "keywords"],
)
def test_right_arguments_arrive_as_they_are(arguments: dict[str, Any]):
    path, *_, keywords = work(**arguments)
    assert path is arguments["path"]
    assert keywords == {key: arguments[key] for key in ("layer", "count") if key in arguments}
    assert (work.__name__, work.__doc__) == ("work", "Return the arguments.")


def test_a_generator_is_not_used_up():
    assert work("a", (number for number in (1, 2)))[1] == [1, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 3}, "path: give a text or a path, not 3"),
        ({"path": None}, "path: give a text or a path, not None"),
        ({"path": b"a"}, "path: give a text or a path, not b'a'"),
        ({"path": "a", "indices": 3}, "indices: give a list, not 3"),
        ({"path": "a", "indices": "12"}, "indices: give a list, not '12'"),
        ({"path": "a", "indices": Path("b")}, r"indices: give a list, not PosixPath\('b'\)"),
        ({"path": "a", "indices": {1: 2}}, "indices: give a list, not {1: 2}"),
        ({"path": "a", "indices": [1, 0.5]}, r"indices\[1\]: give a whole number, not 0.5"),
        ({"path": "a", "indices": [True]}, r"indices\[0\]: give a whole number, not True"),
        ({"path": "a", "indices": [np.bool_(True)]}, r"indices\[0\]: give a whole number, not "),
        ({"path": "a", "share": "1"}, "share: give a number or None, not '1'"),
        ({"path": "a", "quiet": "no"}, "quiet: give True or False, not 'no'"),
        ({"path": "a", "layer": 3}, "layer: give a text or None, not 3"),
        ({"path": "a", "count": None}, "count: give a whole number, not None"),
        ({"path": np.zeros((99, 99))}, "path: give a text or a path, not an object of type ndarray"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str):
    with pytest.raises(UserError, match=f"^{message}"):
        work(**arguments)


def test_missing_and_unknown_arguments():
    with pytest.raises(TypeError, match="path"):
        work()  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^layre: no argument has this name; give layer, count"):
        work("a", layre="1")  # type: ignore[call-arg]
