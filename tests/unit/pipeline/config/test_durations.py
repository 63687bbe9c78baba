"""Durations and sizes: text in a recipe, numbers everywhere else."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.config.durations import Duration, Interval, RunLength, Size, to_bytes, to_steps


def accepts(kind: Any, text: str) -> bool:
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("20ep", 1940),
        ("0.5ep", 48),
        ("0ep", 0),
        ("500st", 500),
        ("0st", 0),
        ("10%", 100),
        ("2.5%", 25),
        ("100%", 1000),
        ("0%", 0),
    ],
)
def test_to_steps(text: str, steps: int):
    assert to_steps(text, steps_per_epoch=97, total_steps=1000) == steps


@pytest.mark.parametrize("text", ["0.001ep", "0.01%", "1st"])
def test_what_is_more_than_nothing_is_at_least_one_step(text: str):
    assert to_steps(text, steps_per_epoch=5, total_steps=10) == 1


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10**5))
def test_whole_epochs_are_exact(epochs: int, steps_per_epoch: int):
    assert to_steps(f"{epochs}ep", steps_per_epoch) == epochs * steps_per_epoch


@settings(deadline=None)
@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 10**6))
def test_a_larger_share_is_never_fewer_steps(one: float, other: float, total: int):
    small, large = sorted((one, other))
    assert to_steps(f"{small:.6f}%", 1, total) <= to_steps(f"{large:.6f}%", 1, total) <= total


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "20 ep",
        "-1ep",
        "1e2st",
        "20epochs",
        "ep",
        "1.5st",
        "101%",
        "1" * 16 + "st",
        "5ep\n",
        "٣ep",
        "½ep",
    ],
)
def test_what_is_no_duration(text: str):
    assert not accepts(Duration, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [(RunLength, "10%"), (RunLength, "0ep"), (RunLength, "0.0ep"), (Interval, "0st"), (Interval, "0%")],
)
def test_a_run_and_an_interval_need_a_length(kind: object, text: str):
    assert accepts(Duration, text)
    assert not accepts(kind, text)


@pytest.mark.parametrize(
    ("text", "count"), [("8GiB", 8 * 2**30), ("0.5MiB", 2**19), ("1KiB", 1024), ("2TiB", 2**41), ("0GiB", 0)]
)
def test_to_bytes(text: str, count: int):
    assert accepts(Size, text)
    assert to_bytes(text) == count


@pytest.mark.parametrize("text", ["8GB", "8", "8 GiB", "-1GiB", "GiB", "8gib"])
def test_what_is_no_size(text: str):
    assert not accepts(Size, text)
