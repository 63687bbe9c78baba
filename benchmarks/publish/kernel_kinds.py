"""Defines the part of a record that divides a training step among kinds of kernels."""

from benchmarks.publish.strict import Strict
from benchmarks.publish.whole_runs import KernelTime


class KernelKind(Strict):
    """One kind of kernel.

    Attributes:
        microseconds, launches: per step.
        fraction: of the time from the first kernel of the steps to the last; on a CPU, of the time of all of
            torch's operators.
        achieved: rate of arithmetic or of memory traffic, with its fraction of the best rate; empty if the
            work of this kind is not known.
        largest: the kernels of this kind that take most.
    """

    kind: str
    microseconds: float
    fraction: float
    launches: float
    achieved: str = ""
    largest: tuple[KernelTime, ...] = ()

    @property
    def named(self) -> str:
        """The largest kernels, each with its microseconds per step."""
        return ", ".join(f"{kernel.name} {kernel.microseconds:,.0f}" for kernel in self.largest)
