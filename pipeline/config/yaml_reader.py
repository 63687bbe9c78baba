"""Reading a recipe: YAML with the scalars of YAML 1.2, the line of every key, and no silent duplicates."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

MAX_RECIPE_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `3e-4` is a float, `off` a word, `1:30` no number."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
# PyYAML's own int constructor reads a leading zero as octal, YAML 1.2 does not.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what either version of YAML reads as a number: `3e-4` is a word to PyYAML."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # in single quotes PyYAML writes these line breaks with an indentation that it then reads as text
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(values: dict[str, Any]) -> str:
    """YAML text that `parse` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass
class Source:
    """Nested values of a recipe, and where each dotted key was written ("recipe.yaml:12")."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """Origin of a dotted key, or of the nearest section around it."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")


def read_recipe(path: str | Path) -> Source:
    """Read one YAML recipe.

    Raises:
        UserError: the file is missing, unreadable or too large, is no YAML mapping, or holds a key twice.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UserError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; a recipe is a short YAML file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        raise UserError(f"{path}: no such recipe. Shipped: {', '.join(near) or 'none in configs/'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give a YAML recipe such as configs/quickstart.yaml"
        ) from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Source:
    """Parse YAML text; NAME stands in messages for the file.

    Raises:
        UserError: the text is no YAML mapping of plain keys, or holds a key twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        source = Source()
        if node is None:
            return source
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                f"{name}:{node.start_mark.line + 1}: expected `key: value` lines, as in configs/quickstart.yaml"
            )
        source.values = _mapping(loader, node, name, "", source.origins, ())
        return source
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(
            f"{name}{line}: not valid YAML ({reason}); check indentation, quotes and special characters"
        ) from None
    finally:
        loader.dispose()


def _mapping(
    loader: _Loader,
    node: yaml.MappingNode,
    name: str,
    prefix: str,
    origins: dict[str, str],
    around: tuple[int, ...],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if id(node) in around:
        raise UserError(
            f"{name}:{node.start_mark.line + 1}: {prefix or 'the recipe'} contains itself; remove the anchor"
        )
    for key_node, value_node in node.value:
        origin = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{origin}: a key must be a word")
        key = str(key_node.value)
        dotted = f"{prefix}.{key}" if prefix else key
        if key in values:
            raise UserError(
                f"{origin}: duplicate key {dotted}, first at {origins[dotted]}; keep one of the two"
            )
        origins[dotted] = origin
        if isinstance(value_node, yaml.MappingNode):
            values[key] = _mapping(loader, value_node, name, dotted, origins, (*around, id(node)))
        else:
            values[key] = loader.construct_object(value_node, deep=True)
    return values


def apply_overrides(source: Source, overrides: list[str]) -> Source:
    """The recipe with each `a.b=value` of the command line put over it.

    Raises:
        UserError: an override is not of that form, or a key is given twice.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", key):
            raise UserError(f"{override!r}: expected KEY=VALUE with a dotted key, such as optimizer.lr=0.1")
        if source.origins.get(key) == "command line":
            raise UserError(f"command line: duplicate key {key}; keep one of the two")
        value = _override_value(text)
        if isinstance(value, dict):
            raise UserError(
                f"command line: {key}: give the keys of a section one by one, such as optimizer.lr=0.1"
            )
        *sections, last = key.split(".")
        target = source.values
        for depth, section in enumerate(sections, 1):
            dotted = ".".join(sections[:depth])
            if target.get(section) is None:
                target[section] = {}
                source.origins[dotted] = "command line"
            elif not isinstance(target[section], dict):
                raise UserError(
                    f"{source.where(dotted)}: {dotted}: expected a section with keys such as {key}, got {target[section]!r}"
                )
            target = target[section]
        target[last] = value
        source.origins[key] = "command line"
    return source


def _override_value(text: str) -> Any:
    """A value as a recipe would hold it; what is no YAML on one line (a path with a colon, say) is text."""
    try:
        return text if "\n" in text else parse(f"value: {text}", "command line").values["value"]
    except UserError:
        return text
