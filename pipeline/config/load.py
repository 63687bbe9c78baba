"""Recipes: YAML and command-line overrides in, one frozen `Config` out. Imports no torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.durations import to_steps
from pipeline.config.messages import explain, leaf_fields
from pipeline.config.schema import (
    Config,
)
from pipeline.config.yaml_reader import Source, apply_overrides, dump, read_recipe
from pipeline.errors import UserError

# Keys that say where and how a run is written, not what it computes: two runs that differ only here are the same run.
_NOT_COMPUTED: Any = {"resume": True, "log": True, "runtime": {"hang_timeout_s": True}}


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Build the config of a run: defaults, then the recipe, then `a.b=value` overrides.

    Raises:
        UserError: naming key, file and line, and the remedy.

    >>> load_config(overrides=["optimizer.lr=3e-4"]).optimizer.lr
    0.0003
    """
    source = read_recipe(recipe) if recipe is not None else Source()
    source = apply_overrides(source, list(overrides))
    try:
        return Config.model_validate(source.values)
    except ValidationError as error:
        raise UserError(explain(error, source)) from None


def _constraints(field: FieldInfo) -> str:
    """Type and range of a field, as the table shows it."""
    text = str(field.annotation)
    if text.startswith("typing.Literal"):
        return " \\| ".join(f"`{choice}`" for choice in get_args(field.annotation))
    kinds = {"RunLength": "duration", "Interval": "duration", "Duration": "duration", "Size": "size"}
    names = {int: "int", float: "float", bool: "bool", str: "str"}
    validators = [m for m in field.metadata if hasattr(m, "func")]
    if field.annotation is str and validators and validators[-1].func.__module__ == to_steps.__module__:
        kind = kinds["Size" if "size" in validators[-1].func.__name__ else "Duration"]
    elif field.annotation in names:
        kind = names[field.annotation]
    elif "tuple" in text:
        kind = "list of durations" if "AfterValidator" in text else "list of float"
    else:
        kind = text.replace("None", "null").replace(" | ", " or ")
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    limits = [
        f"{sign} {getattr(m, name):g}" for m in field.metadata for name, sign in signs if hasattr(m, name)
    ]
    return ", ".join([kind, *limits])


def reference_table() -> str:
    """The config reference as a Markdown table, made from the schema."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in leaf_fields():
        default = json.dumps(field.get_default())
        rows.append(f"| `{key}` | {_constraints(field)} | `{default}` | {field.description} |")
    return "\n".join(rows)


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every key written out; `load_config` reads it back to an equal object."""
    return dump(config.model_dump(mode="json"))


def computed_values(config: Config) -> dict[str, Any]:
    """What the run computes, as JSON: all keys but where it is written, `resume`, and when a run that hangs is given up."""
    return config.model_dump(mode="json", exclude=_NOT_COMPUTED)


def config_hash(config: Config) -> str:
    """First 12 hex digits of the SHA-256 of what the run computes."""
    return hashlib.sha256(json.dumps(computed_values(config), sort_keys=True).encode()).hexdigest()[:12]
