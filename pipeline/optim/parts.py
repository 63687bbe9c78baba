"""Divides a network's parameters into the groups of an optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from pipeline.config import MuonConfig, OptimizerConfig, ParameterGroup
from pipeline.errors import UserError
from pipeline.optim.layer_decay import distances_from_head


@dataclass(frozen=True)
class Part:
    """Parameters with the same settings.

    Attributes:
        parameters: in the order of the network; none twice in two parts.
        orthogonalised: True if Muon moves them.
        lr_ratio: learning rate, as a fraction of `optimizer.lr`.
        weight_decay: L2 penalty, or decoupled decay.
        until: duration at whose end the schedule of these parameters ends; None: with the run.
    """

    parameters: tuple[nn.Parameter, ...]
    orthogonalised: bool
    lr_ratio: float
    weight_decay: float
    until: str | None = None


def partition(config: OptimizerConfig, model: nn.Module) -> list[Part]:
    """Return the parts of a network's trained parameters, Muon's first; none of them is empty.

    A parameter belongs to the first entry of `optimizer.groups` whose pattern fits its name, or to none. With
    `optimizer.layer_decay` its rate also depends on the distance of its layer from the head.

    Raises:
        UserError: an entry of `optimizer.groups` fits no parameter; or Muon has none to move.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = {id(p) for p in hidden_matrices(model)} if isinstance(config, MuonConfig) else set()
    entries = (None, *config.groups)
    by_entry: list[list[nn.Parameter]] = [[] for _ in entries]
    for name, parameter in named:
        fitting = [number for number, entry in enumerate(entries) if entry and fnmatchcase(name, entry.match)]
        by_entry[fitting[0] if fitting else 0].append(parameter)
    for entry, parameters in zip(entries, by_entry, strict=True):
        if entry is not None and not parameters:
            raise UserError(_describe_no_match(entry, [name for name, _ in named]))
    parts = [
        replace(part, lr_ratio=part.lr_ratio * ratio)
        for entry, parameters in zip(entries, by_entry, strict=True)
        for ratio, of_layer in _by_layer(config, model, parameters)
        for part in _divide(config, entry, of_layer, matrices)
        if part.parameters
    ]
    return sorted(parts, key=lambda part: not part.orthogonalised)


def _by_layer(
    config: OptimizerConfig, model: nn.Module, parameters: Sequence[nn.Parameter]
) -> list[tuple[float, list[nn.Parameter]]]:
    """Return the parameters of each layer, from the head backwards, with the factor of their rate."""
    if config.layer_decay == 1:
        return [(1.0, list(parameters))]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    distances = distances_from_head(model)
    layers: dict[int, list[nn.Parameter]] = {}
    for parameter in parameters:
        layers.setdefault(distances[names[id(parameter)]], []).append(parameter)
    return [(config.layer_decay**distance, layers[distance]) for distance in sorted(layers)]


def _divide(
    config: OptimizerConfig,
    entry: ParameterGroup | None,
    parameters: Sequence[nn.Parameter],
    matrices: set[int],
) -> list[Part]:
    """Return the parameters of one entry as three parts: Muon's, those with weight decay, those without."""
    hidden = tuple(p for p in parameters if id(p) in matrices)
    others = [p for p in parameters if id(p) not in matrices]
    decayed = tuple(p for p in others if config.decay_norm_and_bias or p.ndim > 1)
    undecayed = tuple(p for p in others if not (config.decay_norm_and_bias or p.ndim > 1))
    ratio, decay = 1.0, config.weight_decay
    if isinstance(config, MuonConfig):
        ratio, decay = config.sgd_lr_ratio, config.sgd_weight_decay
    parts = [
        Part(hidden, True, 1.0, config.weight_decay),
        Part(decayed, False, ratio, decay),
        Part(undecayed, False, ratio, 0.0),
    ]
    if entry is None:
        return parts
    own_decay = {} if entry.weight_decay is None else {"weight_decay": entry.weight_decay}
    return [
        replace(part, lr_ratio=part.lr_ratio * entry.lr_ratio, until=entry.until, **own_decay)
        for part in parts
    ]


def _describe_no_match(entry: ParameterGroup, names: Sequence[str]) -> str:
    some = ", ".join([*names[:2], "…", *names[-2:]])
    return (
        f"optimizer.groups: {entry.match!r} fits no trained parameter that an earlier entry left; the names "
        f"are such as {some}"
    )


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of two or more dimensions, without the network's first and last such weight.

    The first is for images, the last for classes (Jordan 2024, "Muon: an optimizer for hidden layers in
    neural networks").

    Raises:
        UserError: there are none.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1][1:-1]
    matrices = [p for p in matrices if p.requires_grad]
    if not matrices:
        raise UserError(
            "optimizer.name: muon is for the weights between the first and the last, and this network has "
            "none that are trained; use sgd"
        )
    return matrices
