"""Reads a recipe: YAML with the scalars of YAML 1.2, the line of every key, and duplicate keys as errors."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

MAX_RECIPE_BYTES = 1 << 20
COMMAND_LINE = "command line"  # the origin of a key that an override gives
_QUOTED_OR_NESTED = ("'", '"', "[", "{")  # the first characters of a value that YAML reads
_TEXT = "tag:yaml.org,2002:str"


@dataclass
class Source:
    """Nested values of a recipe, and the origin of each.

    Attributes:
        values: nested by section.
        origins: place of each dotted key: `recipe.yaml:12`, or `command line`.
        replaced: the recipe's own values of the dotted keys that the command line has changed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """Return the origin of a dotted key, or of the nearest section around it; empty if there is none."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")


def read_recipe(path: str | Path) -> Source:
    """Read one YAML recipe.

    Raises:
        UserError: the file is missing, unreadable, empty or too large, is no YAML mapping, or holds a key
            twice.
    """
    path = Path(path)
    try:
        text = _read_text(path)
    except FileNotFoundError:
        near = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        raise UserError(f"{path}: no such recipe. Shipped: {', '.join(near) or 'none in configs/'}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8, or give a YAML recipe such "
            "as configs/quickstart.yaml"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give a YAML recipe such as configs/quickstart.yaml"
        ) from None
    source = parse(text, str(path))
    if not source.values:
        raise UserError(f"{path}: empty; a recipe is a YAML file such as configs/quickstart.yaml")
    return source


def _read_text(path: Path) -> str:
    # a pipe can be read only once: launch.sh has read it, and hands its name and its text over
    name, _, text = os.environ.get("QUICKRES_RECIPE", "").partition("\n")
    if name == str(path):
        return text
    with path.open("rb") as file:  # a pipe tells no size
        content = file.read(MAX_RECIPE_BYTES + 1)
    if len(content) > MAX_RECIPE_BYTES:
        raise UserError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; a recipe is a short YAML file")
    return content.decode("utf-8")


def parse(text: str, name: str) -> Source:
    """Parse YAML text; NAME stands in messages for the file.

    Raises:
        UserError: the text is no YAML mapping of plain keys, or holds a key twice.
    """
    with _explained(name):
        loader = _Loader(text, name)
        node = loader.get_single_node()
        if node is None:
            return Source()
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                f"{loader.place(node)}: expected `key: value` lines, as in configs/quickstart.yaml"
            )
        return Source(loader.read(node), loader.origins)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the errors of PyYAML into one message, which names the file and the line."""
    try:
        yield
    except UserError:
        raise
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{name}: not valid YAML (the character U+{error.character:04X} at position {error.position}); "
            'save the file as UTF-8 text, and write control characters as "\\x01" in double quotes'
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(
            f"{name}{line}: not valid YAML ({reason}); check indentation, quotes and special characters"
        ) from None


def apply_overrides(source: Source, overrides: list[str]) -> Source:
    """Put each `a.b=value` of the command line over the recipe, which is changed in place.

    Raises:
        UserError: an override is not of that form, or a key is given twice.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", key):
            raise UserError(f"{override!r}: expected KEY=VALUE with a dotted key, such as optimizer.lr=0.1")
        if source.origins.get(key) == COMMAND_LINE:
            raise UserError(f"{COMMAND_LINE}: duplicate key {key}; keep one of the two")
        value = _override_value(text)
        if isinstance(value, dict):
            raise UserError(
                f"{COMMAND_LINE}: {key}: give the keys of a section one by one, such as optimizer.lr=0.1"
            )
        section, last = _section_of(source, key)
        if last in section:
            source.replaced[key] = section[last]
        section[last] = value
        source.origins[key] = COMMAND_LINE
    return source


def dump(values: dict[str, Any]) -> str:
    """Return YAML text that `parse` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _section_of(source: Source, key: str) -> tuple[dict[str, Any], str]:
    """Return the section of a dotted key, which is made where it is missing, and the last part of the key."""
    *sections, last = key.split(".")
    target = source.values
    for depth, section in enumerate(sections, 1):
        dotted = ".".join(sections[:depth])
        if target.get(section) is None:
            target[section] = {}
            source.origins[dotted] = COMMAND_LINE
        elif not isinstance(target[section], dict):
            raise UserError(
                f"{source.where(dotted)}: {dotted}: expected a section with keys such as {key}, got "
                f"{target[section]!r}"
            )
        target = target[section]
    return target, last


def _override_value(text: str) -> Any:
    """Return a number, a word such as `true`, a list or a quoted text as a recipe would hold it.

    Any other text is the value itself, whole: a `#`, a colon or a blank at its end belongs to it.
    """
    plain = text.strip(" ")
    try:
        with _explained(COMMAND_LINE):
            if plain[:1] in _QUOTED_OR_NESTED:
                loader = _Loader(plain, COMMAND_LINE)
                node = loader.get_single_node()
                is_whole = node and node.end_mark.index == len(plain) and len(plain.splitlines()) == 1
            else:
                loader = _Loader("", COMMAND_LINE)
                node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, plain, (True, False)), plain)
                is_whole = node.tag != _TEXT
            return loader.construct_object(node, deep=True) if is_whole else text
    except UserError:
        return text


class _Loader(yaml.SafeLoader):
    """SafeLoader with lines of keys and YAML 1.2's scalars: `3e-4` is a float, `off` and `1:30` are text.

    Args:
        text: YAML.
        name: of the file, in messages.

    Attributes:
        origins: place of each dotted key that `read` has met.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's)

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self._name = name
        self.origins: dict[str, str] = {}

    def place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def read(self, node: yaml.MappingNode, prefix: str = "", around: tuple[int, ...] = ()) -> dict[str, Any]:
        """Return the mapping of the key PREFIX as nested dicts; AROUND has the ids of those that hold it."""
        if id(node) in around:
            raise UserError(
                f"{self.place(node)}: {prefix or 'the recipe'} contains itself; remove the anchor"
            )
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{place}: a key must be a word")
            key = str(key_node.value)
            dotted = f"{prefix}.{key}" if prefix else key
            if key in values:
                raise UserError(
                    f"{place}: duplicate key {dotted}, first at {self.origins[dotted]}; keep one of the two"
                )
            self.origins[dotted] = place
            if isinstance(value_node, yaml.MappingNode):
                values[key] = self.read(value_node, dotted, (*around, id(node)))
            else:
                values[key] = self.construct_object(value_node, deep=True)
        return values


_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
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
    return dumper.represent_scalar(_TEXT, text, style=style)


_Dumper.add_representer(str, _represent_text)
