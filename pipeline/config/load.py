"""Turns YAML and command-line overrides into one frozen `Config`, and back. Imports no torch."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.keys import EARLIER_DEFAULTS, LATER_KEYS, all_keys, listed
from pipeline.config.kinds import pass_over_other_kinds
from pipeline.config.messages import explain
from pipeline.config.rules import find_no_effect
from pipeline.config.schema import Config
from pipeline.config.yaml_reader import Source, apply_overrides, dump, read_recipe
from pipeline.errors import UserError

# Keys of the place and the form in which a run is written: two runs that differ only here compute the same.
_NOT_COMPUTED = ("resume", "log.", "runtime.hang_timeout_s")


def load_config(
    recipe: str | Path | None = None, overrides: Sequence[str] = (), *, of_run: bool = False
) -> Config:
    """Build the config of a run: defaults, then the recipe, then `a.b=value` overrides.

    Keys of the recipe that have no effect become `Config.warnings`. So do its keys of another kind, if an
    override changes the kind (`optimizer.momentum` under `optimizer.name=adamw`).

    Args:
        recipe: YAML file; None: defaults alone.
        overrides: keys over those of the recipe.
        of_run: the recipe is the `config.yaml` of a run. Older versions wrote the keys of all kinds there:
            those of other kinds are passed over.

    Raises:
        UserError: naming key, file and line, and the remedy.

    >>> load_config(overrides=["optimizer.lr=3e-4"]).optimizer.lr
    0.0003
    """
    return _load(read_recipe(recipe) if recipe is not None else Source(), overrides, of_run)


def load_values(values: Mapping[str, Any], name: str, overrides: Sequence[str] = ()) -> Config:
    """Build the config of a run from its values instead of from its `config.yaml`.

    Args:
        values: nested by section, as `Config.model_dump(mode="json")` returns them.
        name: of their origin, for messages.
        overrides: keys over those of the values.

    Raises:
        UserError: naming the key and the remedy.

    >>> load_values({"optimizer": {"lr": 0.1}}, "registry.json", ["optimizer.lr=0.2"]).optimizer.lr
    0.2
    """
    own = copy.deepcopy(dict(values))
    return _load(Source(own, dict.fromkeys([*own, *flatten(own)], name)), overrides, of_run=True)


def _load(source: Source, overrides: Sequence[str], of_run: bool) -> Config:
    source = apply_overrides(source, list(overrides))
    passed_over = pass_over_other_kinds(source, of_run)
    try:
        config = Config.model_validate(source.values)
    except ValidationError as error:
        raise UserError(explain(error, source)) from None
    if not of_run:
        config._warnings = (*passed_over, *_describe_no_effect(config, source))
    return config


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML with every key of its kinds; `load_config` reads it back."""
    values = flatten(config.model_dump(mode="json"))
    return dump(_nest({key: values[key] for key in all_keys() if key in values}))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key.

    >>> flatten({"seed": 1, "data": {"root": "x"}})
    {'seed': 1, 'data.root': 'x'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def all_values(config: Config) -> dict[str, Any]:
    """Return the JSON value of every dotted key; a key of another kind than the config's has its default."""
    values = flatten(config.model_dump(mode="json"))
    return {key: values.get(key, default) for key, default in default_values().items()}


def default_values() -> dict[str, Any]:
    """Return the JSON default of every dotted key, those of all kinds."""
    return {name: json.loads(json.dumps(key.field.default)) for name, key in all_keys().items()}


def computed_values(config: Config) -> dict[str, Any]:
    """Return `all_values` without those that do not change what the run computes.

    These are `resume`, the keys of `log`, and the time after which a run that hangs is given up.
    """
    return _computed(all_values(config))


def config_hash(config: Config) -> str:
    """Return the first 12 hex digits of the SHA-256 of what the run computes.

    Keys of other kinds count with their defaults: so did older versions, where every kind had all keys.
    """
    return _hash(all_values(config))


def hash_of_run(recipe: Path) -> str:
    """Return the hash that the checkpoints of a run hold, from its `config.yaml` as it is written.

    It is `config_hash`, except for a run of an older version that gave keys of another kind, which counted
    (`data.num_classes: 4` beside `data.dataset: digits`).

    Raises:
        UserError: the file cannot be read.
    """
    return _hash(default_values() | flatten(read_recipe(recipe).values))


def _hash(values: Mapping[str, Any]) -> str:
    defaults = default_values()
    counted = {
        key: EARLIER_DEFAULTS.get(key, value) if value == defaults[key] else value
        for key, value in _computed(values).items()
        if key not in LATER_KEYS or value != defaults[key]
    }
    text = json.dumps(_nest(counted), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _computed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(_NOT_COMPUTED)}


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flatten`, for sections that hold no sections."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def _describe_no_effect(config: Config, source: Source) -> list[str]:
    warnings = []
    for keys, reason in find_no_effect(config):
        verb, them = ("has", "the key") if len(keys) == 1 else ("have", "the keys")
        warnings.append(
            f"{source.where(keys[0])}: {listed(keys)} {verb} no effect {reason}, or remove {them}"
        )
    return warnings
