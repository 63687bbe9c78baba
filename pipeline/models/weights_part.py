"""Finds the weights of a network inside the content of a file, by their names and shapes.

A training script saves them under some key (`state_dict`, `model`, `net`), often beside a moving average, and
with a prefix for each program that wraps the network (`module.`, `_orig_mod.`, `model.`). No such key or
prefix is listed here: that part is taken in which most names and shapes are the network's.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

Weights = Mapping[str, Tensor]

_MAX_DEPTH = 6  # of dicts in dicts
_WRAPPERS = re.compile(r"(?<=\.)(?:module|_orig_mod)\.")  # DDP and torch.compile, inside of a name
_DOT = re.compile(r"\.")
_AVERAGE = re.compile(r"(?<![A-Za-z])ema(?![A-Za-z])|EMA")


@dataclass(frozen=True)
class Part:
    """A part of a file, seen as the weights of a network.

    Attributes:
        place: keys that lead to a dict of tensors in the file.
        prefix: of the names of these weights in that dict.
        names: of each weight in that dict, by its name in the network. A weight that the network does not
            have keeps the name that it has without the prefix.
        tensors: that dict.
        fit: how many weights have a name and a shape of the network, and how many have a name of it.
    """

    place: tuple[str, ...]
    prefix: str
    names: dict[str, str]
    tensors: dict[Any, Tensor]
    fit: tuple[int, int]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights by their names in the network."""
        return {ours: self.tensors[theirs] for ours, theirs in self.names.items()}

    @property
    def left_out(self) -> list[str]:
        """Names of the tensors without the prefix."""
        taken = set(self.names.values())
        return [str(name) for name in self.tensors if name not in taken]

    @property
    def label(self) -> str:
        """The keys that lead to the weights, and the prefix without the names of wrappers."""
        prefix = _WRAPPERS.sub("", f".{self.prefix}")
        return f"{'.'.join(self.place)}{prefix}".strip(".") or "the top level"

    @property
    def is_average(self) -> bool:
        """True if the label speaks of a moving average."""
        return _AVERAGE.search(self.label) is not None

    @property
    def stripped(self) -> list[str]:
        """The prefix, and the names of wrappers that stood inside of the names."""
        inside = {
            wrapper
            for ours, theirs in self.names.items()
            for wrapper in _WRAPPERS.findall(theirs.removeprefix(self.prefix))
            if not _WRAPPERS.search(ours)
        }
        return [*filter(None, [self.prefix]), *sorted(inside)]

    def renamed(self, layer: str, new: str) -> "Part":
        """Return the part with another name in the network for the weights of a layer."""
        names = {
            f"{new}.{ours.removeprefix(f'{layer}.')}" if ours.startswith(f"{layer}.") else ours: theirs
            for ours, theirs in self.names.items()
        }
        return replace(self, names=names)


def find_part(content: Any, network: Weights, translate: Callable[[str], str]) -> tuple[Part, list[str]]:
    """Find the part of a file that has most names and shapes of a network.

    Of parts that fit equally, a moving average of the weights comes first, then the first in the file.

    Args:
        content: of the file.
        network: its state dict.
        translate: returns the network's name for a name of another program.

    Returns:
        The part, and the labels of the other parts that have at least half as many weights of the network.

    Raises:
        ValueError: there is no dict of names and tensors; says what there is.
    """
    parts = [
        part
        for place, tensors in _dicts_of_tensors(content, ())
        for part in _parts_of(place, tensors, network, translate)
    ]
    if not parts:
        raise ValueError("holds no state dict (names and tensors)")
    fit = max(part.fit for part in parts)
    if any(fit):
        equal = [part for part in parts if part.fit == fit]
        best = next((part for part in equal if part.is_average), equal[0])
    else:  # of another network, and the caller says in which way
        best = max(parts, key=lambda part: len(part.names))
    for key in best.tensors:
        if not isinstance(key, str):
            raise ValueError(f"holds tensors under keys that are not names, such as {key!r}")
    others = [part.label for part in parts if part is not best and 0 < fit[1] <= 2 * part.fit[1]]
    return best, others


def _dicts_of_tensors(
    content: Any, place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[Any, Tensor]]]:
    """Yield the tensors of each dict in the content, and the keys that lead to it."""
    if isinstance(content, dict):
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            yield place, tensors
        items = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    else:
        return
    if len(place) < _MAX_DEPTH:
        for key, value in items:
            yield from _dicts_of_tensors(value, (*place, str(key)))


def _parts_of(
    place: tuple[str, ...], tensors: dict[Any, Tensor], network: Weights, translate: Callable[[str], str]
) -> list[Part]:
    """Return a part for each of the prefixes under which most weights of the network stand in a dict."""
    fits: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    names = [name for name in tensors if isinstance(name, str)]
    for name in names:
        for cut in (0, *(dot.end() for dot in _DOT.finditer(name))):
            ours = _in_network(name[cut:], network, translate)
            if ours in network:
                fits[name[:cut]][0] += tensors[name].shape == network[ours].shape
                fits[name[:cut]][1] += 1
    best = max(fits.values(), default=[0, 0])
    prefixes = [prefix for prefix, fit in fits.items() if fit == best] or [""]
    return [
        Part(place, prefix, _name_all(names, prefix, network, translate), tensors, (best[0], best[1]))
        for prefix in prefixes
    ]


def _name_all(
    names: list[str], prefix: str, network: Weights, translate: Callable[[str], str]
) -> dict[str, str]:
    """Return the names with a prefix, by their names in the network.

    Raises:
        ValueError: two of them have one name in the network.
    """
    named: dict[str, str] = {}
    for name in names:
        if name.startswith(prefix):
            ours = _in_network(name.removeprefix(prefix), network, translate)
            if ours in named:
                raise ValueError(f"holds {named[ours]} and {name}, which are the same tensor of the network")
            named[ours] = name
    return named


def _in_network(name: str, network: Weights, translate: Callable[[str], str]) -> str:
    """Return the network's name for a name in the file, without the wrappers inside of it."""
    unwrapped = _WRAPPERS.sub("", name)
    return next((known for known in (name, unwrapped) if known in network), translate(unwrapped))
