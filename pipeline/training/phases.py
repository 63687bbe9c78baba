"""Divides a run into phases: one ends where parameters reach `until` of `optimizer.groups`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from pipeline.config import Config, MuonConfig
from pipeline.optim.parts import Part, partition
from pipeline.training.plan import Plan


@dataclass(frozen=True)
class Phase:
    """Steps that train the same parameters.

    Attributes:
        first_step: of the phase; it lasts until the first step of the next one.
        ended: parameters that are not trained any longer.
    """

    first_step: int = 0
    ended: tuple[nn.Parameter, ...] = ()

    @contextmanager
    def without_ended(self) -> Iterator[None]:
        """Compute no gradients of parameters that have ended.

        Nor is a gradient computed that only they need, such as that by the input of the layer after them.
        """
        for parameter in self.ended:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.ended:
                parameter.requires_grad_(True)


def phases_of(config: Config, plan: Plan, model: nn.Module) -> tuple[Phase, ...]:
    """Return the phases of a run in their order; one without `compile.drop_ended`.

    The trained weights are those of one phase, as the learning rate of parameters that have ended is 0. So
    all parameters stay in the step if the norm of the gradient is clipped. Matrices that Muon renormalises
    stay until their next renormalisation: later ones change them no more. When all parameters have ended, no
    new phase begins. Two differences are left. A gradient of an ended parameter that overflows no longer
    skips the update of the others. And a convolution whose input needs no gradient any longer may have a
    kernel of its own, which adds in another order, and rounds the gradient by its weight less
    (`kernels/conv_pool_norm_act/op.py`).
    """
    if not config.compile.drop_ended or config.optimizer.clip_norm is not None:
        return (Phase(),)
    parts = partition(config.optimizer, model)
    endings = [
        (end, part.parameters)
        for part in parts
        if (end := _first_step_without(part, config, plan)) is not None and end < plan.total_steps
    ]
    phases = [
        Phase(first, tuple(p for end, parameters in endings if end <= first for p in parameters))
        for first in sorted({0, *(end for end, _ in endings)})
    ]
    num_trained = sum(len(part.parameters) for part in parts)
    # a step without any gradient could not be taken
    return tuple(phase for phase in phases if len(phase.ended) < num_trained) or (Phase(),)


def _first_step_without(part: Part, config: Config, plan: Plan) -> int | None:
    """Return the first step that may leave out a part; None: it is trained to the end of the run."""
    end, every = plan.end_of(part), plan.renormalise_every
    if end is None or not (part.orthogonalised and isinstance(config.optimizer, MuonConfig) and every):
        return end
    return -(-end // every) * every + 1  # after the next renormalisation
