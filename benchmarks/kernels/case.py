"""Describe one size and dtype of an op, with everything that a call needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@dataclass(frozen=True)
class Case:
    """One size and dtype of an op.

    Attributes:
        label: size and dtype, for the reader.
        kernel: the op.
        reference: the function that is compiled and timed beside the op.
        reference_name: name of the reference in a table.
        inputs: argument lists, taken in turn, so that a repeated call does not find its inputs in the cache.
        batch_size: samples of one call.
        precision: of the tensors, as `precision.mode` names it.
        image_size: in pixels; 0 if there are no images.
        num_classes: of logits; None if there are none.
        variant: anything else that distinguishes two cases of an op.
        wrap: returns the function that is timed, such as forward and backward, for the op or its compiled
            reference.
        others: titles and functions that are timed beside the two, not compiled.
        on_host: the reference works on the host: it is neither compiled nor captured, and neither is the
            kernel.
    """

    label: str
    kernel: Callable[..., Any]
    reference: Callable[..., Any]
    reference_name: str
    inputs: Sequence[tuple[Any, ...]]
    batch_size: int
    precision: str
    image_size: int = 0
    num_classes: int | None = None
    variant: str = ""
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = _unchanged
    others: Sequence[tuple[str, Callable[..., Any]]] = ()
    on_host: bool = False

    def caller(self, function: Callable[..., Any]) -> Callable[[int], Any]:
        """Return a function that takes the number of a turn and calls on the inputs of that turn."""
        wrapped = self.wrap(function)
        return lambda turn: wrapped(*self.inputs[turn % len(self.inputs)])
