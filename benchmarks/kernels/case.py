"""One size and type of an op, with all that is needed to call it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        label: size and type, for people.
        kernel: the op.
        reference: what is timed beside it, compiled.
        reference_name: names it in a table.
        inputs: argument lists, taken in turn, so that a repeated call does not find its inputs in the cache.
        batch_size: samples of one call.
        precision: of the tensors, as `precision.mode` names it.
        image_size: in pixels; 0 where there are no images.
        num_classes: of logits; None where there are none.
        variant: what else tells two cases of an op apart.
        around: what a call does with the op, or with its compiled reference, beside calling it: the backward pass, say.
        on_host: the reference works on the host: it is neither compiled nor captured, and neither is the kernel.
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
    around: Callable[[Callable[..., Any]], Callable[..., Any]] = _as_it_is
    on_host: bool = False

    def caller(self, function: Callable[..., Any]) -> Callable[[int], Any]:
        """A call of the function on the inputs of a turn."""
        called = self.around(function)
        return lambda turn: called(*self.inputs[turn % len(self.inputs)])
