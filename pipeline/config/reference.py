"""Prints the reference of all keys as a Markdown table, made from the schema."""

import json
import re
from typing import get_args

from pydantic.fields import FieldInfo

from pipeline.config import durations
from pipeline.config.keys import Key, all_keys
from pipeline.config.messages import suggest
from pipeline.errors import UserError

_HEAD = ["| key | type | default | meaning |", "|---|---|---|---|"]
_NAMES = {int: "int", float: "float", bool: "bool", str: "str"}
_LIMITS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def reference_table(word: str = "") -> str:
    """Return the rows whose key or meaning holds the word, in any case of letters; all for an empty word.

    Raises:
        UserError: no row holds the word; names the nearest key.
    """
    rows = [
        f"| `{name}` | {_type(key.field)} | `{json.dumps(key.field.default)}` | {_meaning(key)} |"
        for name, key in all_keys().items()
        if word.lower() in f"{name} {_meaning(key)}".lower()
    ]
    if not rows:
        raise UserError(f"no key or meaning holds {word!r}{suggest(word)}")
    return "\n".join([*_HEAD, *rows])


def _meaning(key: Key) -> str:
    return f"{key.field.description} (`{key.owner}`)" if key.kinds else str(key.field.description)


def _type(field: FieldInfo) -> str:
    """Return the type and the range of a field."""
    text = str(field.annotation)
    if text.startswith("typing.Literal"):
        return " \\| ".join(f"`{_spelling(choice)}`" for choice in get_args(field.annotation))
    signed = ((sign, getattr(m, name, None)) for m in field.metadata for name, sign in _LIMITS)
    limits = [f"{sign} {limit:g}" for sign, limit in signed if limit is not None]
    return ", ".join([_type_name(field, text), *limits])


def _spelling(choice: str | bool) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice)


def _type_name(field: FieldInfo, text: str) -> str:
    checks = [m.func for m in field.metadata if hasattr(m, "func")]
    if field.annotation is str and checks and checks[-1].__module__ == durations.__name__:
        return "size" if "size" in checks[-1].__name__ else "duration"
    if field.annotation in _NAMES:
        return _NAMES[field.annotation]
    if "Optional" in text and "_check_duration" in text:
        return "duration or null"
    if "ParameterGroup" in text:
        return "list of mappings"
    if "tuple" in text:
        return _list_type(text)
    return text.replace("None", "null").replace(" | ", " or ")


def _list_type(text: str) -> str:
    """Return the type of a list, with the words that may stand in its place."""
    null = " or null" * ("Optional" in text or "NoneType]" in text)
    choices = re.search(r"tuple\[typing.Literal\[([^\]]+)\]", text)
    if choices is not None:
        return "list of " + " \\| ".join(f"`{word}`" for word in re.findall(r"'(\w+)'", choices[1])) + null
    if "AfterValidator" in text:
        return "list of durations" + null
    words = "".join(f"`{word}` or " for word in re.findall(r"Literal\['(\w+)'\]", text))
    return f"{words}list of {'float' if 'float' in text else 'str'}{null}"
