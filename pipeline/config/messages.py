"""Explains a key that is not accepted: its place, the mistake, and the remedy."""

import difflib
import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.keys import all_keys, listed, sections_of_kinds
from pipeline.config.yaml_reader import Source

_MAX_SHOWN = 80  # characters of a value
_LIST_KEYS = "`python -m pipeline config-reference` lists the keys"
# pydantic's words, and the words for the same in a recipe, where a tuple is a list
_IN_A_RECIPE = (
    ("valid tuple", "list, such as [1, 2]"),
    ("Tuple should", "the list should"),
    (" after validation", ""),
)
_NO_SECTION = ("model_type", "model_attributes_type")  # pydantic's names of the error


def explain(error: ValidationError, source: Source) -> str:
    """Return one line for each key that is wrong."""
    # a union gives one error for each of its types, all at the same key; the last error is shown
    return "\n".join({_key_of(item): _explain(item, source) for item in error.errors()}.values())


def suggest(key: str) -> str:
    """Return the end of a message about an unknown key: the nearest one, or the command that lists them."""
    known = list(all_keys())
    section, _, last = key.rpartition(".")
    if key in known:  # with a dot in it, as on the command line
        return f"; in a recipe it stands as `{last}:` in the section `{section}:`"
    known += sorted(_sections())
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:
        by_last = {name.rpartition(".")[2]: name for name in known}
        near = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)]
    return f"; did you mean {near[0]}?" if near else f"; {_LIST_KEYS}"


def _sections() -> set[str]:
    return {name.partition(".")[0] for name in all_keys() if "." in name}


def _key_of(item: Any) -> str:
    """Return the dotted key of a pydantic error, without the kind and the index that pydantic adds."""
    path = list(item["loc"])
    if path and path[0] in sections_of_kinds():
        if item["type"] == "union_tag_invalid":
            path.append(sections_of_kinds()[path[0]].key)
        else:
            del path[1:2]  # the kind
    key = ""
    for part in path:
        longer = f"{key}.{part}" if key else str(part)
        known = longer in all_keys() or longer in _sections()
        if isinstance(part, int) or not (known or item["type"] == "extra_forbidden"):
            break
        key = longer
    return key


def _explain(item: Any, source: Source) -> str:
    """Return one line for one pydantic error: place, key, mistake, remedy."""
    key = _key_of(item)
    where = source.where(key)
    place = f"{where}: " if where else ""
    if item["type"] == "extra_forbidden":
        return place + _explain_unknown(item, key, source)
    message = re.sub(
        rf"\S{{{_MAX_SHOWN},}}", lambda word: _shorten(word[0]), item["msg"].removeprefix("Value error, ")
    )
    if not key:
        # a rule over several keys: the first one named in it says where
        words = (word.strip("`:,") for word in message.split())
        origin = source.where(next((word for word in words if word in all_keys()), ""))
        return f"{origin}: {message}" if origin else message
    if item["type"] in _NO_SECTION:
        first = next(name for name in all_keys() if name.startswith(f"{key}."))
        value = _shorten(repr(item["input"]))
        return f"{place}{key}: expected a section with keys such as {first}, got {value} ({_LIST_KEYS})"
    return f"{place}{key}: {_describe_value(item, message, all_keys()[key].field)}"


def _explain_unknown(item: Any, key: str, source: Source) -> str:
    """Explain a key that does not exist, or not for this kind."""
    known = all_keys().get(key)
    if known is None or not known.kinds or "." in item["loc"][-1]:
        return f"unknown key {_shorten(key) or repr(key)}{suggest(key)}"
    default = "" if known.kind_key in source.origins else ", the default"
    remedy = f"remove it, or change {known.kind_key}"
    return f"{key} is a key of {known.owner}, not of {item['loc'][1]}{default}; {remedy}"


def _describe_value(item: Any, message: str, field: FieldInfo) -> str:
    """Explain a value that its key does not take."""
    value = item["input"]
    if item["type"] == "union_tag_invalid":  # the value of the key that names the kind
        choices = [word.strip() for word in item["ctx"]["expected_tags"].split(",")]
        message, value = f"input should be {listed(choices, 'or')}", _value_of_kind(item)
    if item["type"] == "missing":  # an entry of a list of fixed length
        message = "more numbers are needed"
    if item["type"] == "tuple_type" and str(value).lstrip().startswith("["):  # a text, as YAML cannot read it
        message = "not valid YAML; put texts that begin with * or another special character in double quotes"
    for theirs, ours in _IN_A_RECIPE:
        message = message.replace(theirs, ours)
    if field.default and isinstance(field.default, tuple) and isinstance(field.default[0], str):
        message = message.replace("[1, 2]", f"[{', '.join(field.default)}]")
    given = "" if item["type"] in ("missing", "value_error") else f", got {_shorten(repr(value))}"
    default = json.dumps(field.default)
    return f"{message[0].lower() + message[1:]}{given} ({field.description}; the default is {default})"


def _value_of_kind(item: Any) -> Any:
    return item["input"][item["ctx"]["discriminator"].strip("'")]


def _shorten(text: str) -> str:
    plain = text if text.isprintable() else ascii(text)
    return plain if len(plain) <= _MAX_SHOWN else plain[: _MAX_SHOWN - 3] + "..."
