"""Marks the tests that need GPUs: `./launch.sh test -m gpu` runs all of them, `-m gpus` those of several."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch

Test = TypeVar("Test", bound=Callable[..., None])

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# of a file, a class or a case
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="needs a GPU")]
USES_GPU = [pytest.mark.gpu] if ON_GPU else []  # without a GPU the tests run too, in Triton's interpreter


def needs_gpu(why: str = "") -> Callable[[Test], Test]:
    """Return a decorator for a test that needs a GPU; WHY is shown where it is skipped."""
    reason = f"needs a GPU: {why}" if why else "needs a GPU"
    return _with_marks([pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason=reason)])


def marks_of_gpus(count: int) -> list[pytest.MarkDecorator]:
    """Return the marks of a test, or of a case of one, that is skipped with fewer GPUs."""
    is_missing = torch.cuda.device_count() < count
    skip = pytest.mark.skipif(is_missing, reason=f"needs {count} CUDA GPUs")
    return [pytest.mark.gpu, pytest.mark.gpus, skip]


def needs_gpus(count: int) -> Callable[[Test], Test]:
    """Return a decorator that gives a test these marks."""
    return _with_marks(marks_of_gpus(count))


def _with_marks(marks: Sequence[pytest.MarkDecorator]) -> Callable[[Test], Test]:
    def mark(test: Test) -> Test:
        for decorator in marks:
            test = decorator(test)
        return test

    return mark
