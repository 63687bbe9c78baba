"""What a person is told about a key that is not accepted: where it stands, what is wrong, and what to write."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.base import Section
from pipeline.config.schema import Config
from pipeline.config.yaml_reader import Source

_MAX_SHOWN = 80  # characters of a value
_LIST_KEYS = "`python -m pipeline config-reference` lists the keys"
# pydantic's words for what a recipe calls a list
_IN_A_RECIPE = (
    ("valid tuple", "list, such as [1, 2]"),
    ("Tuple should", "the list should"),
    (" after validation", ""),
)


def explain(error: ValidationError, source: Source) -> str:
    """One line for each key that is wrong."""
    # of several errors at one key (each branch of a union gives one) the last is told
    return "\n".join({_path(item): _explain(item, source) for item in error.errors()}.values())


def _path(item: Any) -> tuple[str, ...]:
    """The key of a pydantic error, without what pydantic adds: the branch of a union, the index in a list."""
    path: list[str] = []
    for part in item["loc"]:
        if isinstance(part, int) or not (field_at([*path, part]) or item["type"] == "extra_forbidden"):
            break
        path.append(str(part))
    return tuple(path)


def _explain(item: Any, source: Source) -> str:
    """One line for one pydantic error: where, which key, what is wrong, what to do."""
    path = _path(item)
    key = ".".join(path)
    where = source.where(key)
    prefix = f"{where}: " if where else ""
    if item["type"] == "extra_forbidden":
        return f"{prefix}unknown key {_shorten(key) or repr(key)}{_suggestion(path)}"
    message = re.sub(
        rf"\S{{{_MAX_SHOWN},}}", lambda word: _shorten(word[0]), item["msg"].removeprefix("Value error, ")
    )
    if not key:
        # a rule over several keys: the first one named in it says where
        named = next(
            (word.strip("`:,") for word in message.split() if field_at(word.strip("`:,").split("."))), ""
        )
        origin = source.where(named)
        return f"{origin}: {message}" if origin else message
    field = field_at(path)
    assert field is not None, f"no key {key}"
    if item["type"] == "model_type":
        first = next(name for name, _ in leaf_fields() if name.startswith(f"{key}."))
        return f"{prefix}{key}: expected a section with keys such as {first}, got {_shorten(repr(item['input']))} ({_LIST_KEYS})"
    if item["type"] == "missing":  # an entry of a list of fixed length
        message = "more numbers are needed"
    for theirs, ours in _IN_A_RECIPE:
        message = message.replace(theirs, ours)
    given = "" if item["type"] in ("missing", "value_error") else f", got {_shorten(repr(item['input']))}"
    default = json.dumps(field.get_default())
    return f"{prefix}{key}: {message[0].lower() + message[1:]}{given} ({field.description}; the default is {default})"


def _shorten(text: str) -> str:
    plain = text if text.isprintable() else ascii(text)
    return plain if len(plain) <= _MAX_SHOWN else plain[: _MAX_SHOWN - 3] + "..."


def _suggestion(path: Sequence[str]) -> str:
    key = ".".join(path)
    known = [name for name, _ in leaf_fields()]
    if key in known:  # with a dot in it, as on the command line
        return f"; in a recipe it stands as `{key.rpartition('.')[2]}:` in the section `{key.rpartition('.')[0]}:`"
    known += sorted({name.partition(".")[0] for name in known})
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:
        near = [
            by_last[name]
            for name in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.6)
        ]
    return f"; did you mean {near[0]}?" if near else f"; {_LIST_KEYS}"


def field_at(path: Sequence[Any]) -> FieldInfo | None:
    """The field of a key, given as its parts; None where there is none."""
    model: type[Section] = Config
    field: FieldInfo | None = None
    for depth, part in enumerate(path):
        field = model.model_fields.get(str(part))
        if field is None:
            return None
        if depth < len(path) - 1:
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
                return None
            model = field.annotation
    return field


def leaf_fields(model: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of the config with its field, in the order of the schema."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaf_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
