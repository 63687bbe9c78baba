"""Marks the tests that need several GPUs: `./launch.sh test -m gpus` runs all of them."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

Test = TypeVar("Test", bound=Callable[..., None])


def marks_of_gpus(count: int) -> list[pytest.MarkDecorator]:
    """Return the marks of a test, or of a case of one, that is skipped with fewer GPUs."""
    is_missing = torch.cuda.device_count() < count
    skip = pytest.mark.skipif(is_missing, reason=f"needs {count} CUDA GPUs")
    return [pytest.mark.gpu, pytest.mark.gpus, skip]


def needs_gpus(count: int) -> Callable[[Test], Test]:
    """Return a decorator that gives a test these marks."""

    def mark(test: Test) -> Test:
        for decorator in marks_of_gpus(count):
            test = decorator(test)
        return test

    return mark
