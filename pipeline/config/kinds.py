"""Passes over keys of another kind where the command line changes the kind, and in configs of older runs."""

from collections.abc import Sequence
from typing import Any

from pipeline.config.keys import LATER_KEYS, all_keys, listed, sections_of_kinds
from pipeline.config.yaml_reader import COMMAND_LINE, Source


def pass_over_other_kinds(source: Source, of_run: bool) -> list[str]:
    """Remove the recipe's keys of another kind, section by section.

    Keys of the command line stay, and so do those of a recipe that names its kind itself: they are errors. A
    recipe with every key of every kind was written by an older version, and counts as the config of a run.

    Args:
        source: changed in place.
        of_run: the recipe is the config of a run, of any older version.

    Returns:
        A warning for each section that lost keys.
    """
    warnings = []
    of_run = of_run or all(key in source.origins for key in all_keys() if key not in LATER_KEYS)
    for section, mark in sections_of_kinds().items():
        kind_key, values = f"{section}.{mark.key}", source.values.get(section)
        if not isinstance(values, dict):
            continue
        kind = values.get(mark.key, mark.default)
        changed = source.origins.get(kind_key) == COMMAND_LINE and kind != source.replaced.get(
            kind_key, mark.default
        )
        if not (of_run or changed):
            continue
        foreign = [key for key in _foreign_keys(section, values, kind) if source.origins[key] != COMMAND_LINE]
        if foreign and changed:
            verb, them = ("is", "this key") if len(foreign) == 1 else ("are", "these keys")
            reason = f"the command line sets {kind_key}={kind}, which does not have {them}"
            warnings.append(f"{source.origins[foreign[0]]}: {listed(foreign)} {verb} passed over: {reason}")
        for key in foreign:
            del values[key.partition(".")[2]]
    return warnings


def without_other_kinds(overrides: Sequence[str], over: Sequence[str]) -> list[str]:
    """Return `key=value` overrides without the keys of another kind than the overrides OVER them name.

    >>> without_other_kinds(["optimizer.momentum=0.8", "optimizer.lr=0.1"], ["optimizer.name=adamw"])
    ['optimizer.lr=0.1']
    """
    kinds = {item.partition("=")[0]: item.partition("=")[2] for item in over}
    result = []
    for item in overrides:
        key = all_keys().get(item.partition("=")[0])
        kind = kinds.get(key.kind_key) if key is not None else None
        if key is None or kind is None or key.exists_for(kind):
            result.append(item)
    return result


def _foreign_keys(section: str, values: dict[str, Any], kind: object) -> list[str]:
    """Return the dotted keys that other kinds of the section have, and this one has not."""
    keys = {f"{section}.{name}": all_keys().get(f"{section}.{name}") for name in values}
    return [name for name, key in keys.items() if key is not None and not key.exists_for(str(kind))]
