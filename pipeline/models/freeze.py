"""Freezes the parameters that `model.freeze` names, and the batch norms that they belong to."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from pipeline.errors import UserError
from pipeline.models.build import num_parameters


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude parameters from training, and put batch norms without any other parameter in evaluation mode.

    Such a norm uses its running statistics and does not change them.

    Args:
        model: changed in place.
        patterns: of names, in which `*` stands for any text, such as `stem.*`.

    Raises:
        UserError: a pattern fits no parameter, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    frozen: set[nn.Parameter] = set()
    for pattern in patterns:
        fitting = [parameter for name, parameter in named.items() if fnmatchcase(name, pattern)]
        if not fitting:
            some = ", ".join([*list(named)[:2], "…", *list(named)[-2:]])
            raise UserError(
                f"model.freeze: {pattern!r} fits no parameter; the names are such as {some}; a pattern for "
                "several is such as 'stem.*'"
            )
        frozen.update(fitting)
    for parameter in frozen:
        parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(
            f"model.freeze: {list(patterns)} fit all parameters of the network; leave some to train, such as "
            "those of its head"
        )
    if patterns:
        freeze_norms(model)


def describe_trained(model: nn.Module) -> str:
    """Return how many parameters are trained, for people.

    >>> describe_trained(nn.Linear(2, 3).requires_grad_(False))
    '0 of 9 parameters'
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    return f"{num_parameters(model):,} of {total:,} parameters"


def freeze_norms(model: nn.Module) -> None:
    """Put batch norms whose own parameters are all frozen in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
