"""Lists the keys of a recipe: the dotted name, the field, and the kinds that have the key."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from pipeline.config.base import Kinds, Section
from pipeline.config.schema import Config

# Keys that older runs do not have. At its default such a key does not count in the hash of a config, so that
# a run of an older version can be continued. A new key is added here.
LATER_KEYS = frozenset(
    {
        *("augment.brightness", "augment.contrast", "augment.crop_border"),
        *("model.activation", "optimizer.groups", "optimizer.sgd_momentum"),
        *("evaluation.views", "evaluation.views_share"),
        *("optimizer.newton_schulz_steps", "optimizer.newton_schulz_coefficients"),
        *("optimizer.renormalise_every", "lookahead.every", "lookahead.decay", "lookahead.power"),
        *("data.train_folder", "data.test_folder", "compile.drop_ended", "compile.scope"),
        *("loss.name", "ema.every", "augment.cutmix_alpha", "augment.cutmix_share"),
        *("model.stochastic_depth", "model.blur_pool", "model.freeze", "optimizer.layer_decay"),
        *("augment.erasing", "augment.trivial_augment", "augment.repeats"),
        *("log.trackers", "log.project"),
        *("data.sampler", "loss.class_weights"),
        *("data.train_shards", "data.test_shards", "data.image_key", "data.label_key"),
        *("data.gpu_share", "data.classes", "model.reset_head"),
    }
)
# Keys with another default than in older versions. In the hash the new default counts as the older one.
EARLIER_DEFAULTS = {"data.decoder": "gpu"}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        field: its type, limits, default and description.
        kind_key: the dotted key that names the kind; empty if every config has this key.
        kinds: the kinds that have this key.
    """

    field: FieldInfo
    kind_key: str = ""
    kinds: tuple[str, ...] = ()

    @property
    def owner(self) -> str:
        """The kinds in words: `optimizer.name=sgd or muon`."""
        return f"{self.kind_key}={listed(self.kinds, 'or')}"

    def exists_for(self, kind: str) -> bool:
        return not self.kinds or kind in self.kinds


@cache
def all_keys() -> dict[str, Key]:
    """Return every key by its dotted name, in the order of the schema, those of all kinds."""
    keys: dict[str, Key] = {}
    for name, field in Config.model_fields.items():
        if name in sections_of_kinds():
            keys |= _keys_of_kinds(name, field)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys |= {f"{name}.{key}": Key(of) for key, of in field.annotation.model_fields.items()}
        else:
            keys[name] = Key(field)
    return keys


@cache
def sections_of_kinds() -> dict[str, Kinds]:
    """Return the sections whose keys differ by kind."""
    return {
        name: mark
        for name, field in Config.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Kinds)
    }


def leaf_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key of the config with its field, in the order of the schema, those of all kinds."""
    for name, key in all_keys().items():
        yield name, key.field


def listed(words: tuple[str, ...] | list[str], last: str = "and") -> str:
    """Return words as an enumeration.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _keys_of_kinds(section: str, field: FieldInfo) -> dict[str, Key]:
    mark = sections_of_kinds()[section]
    classes: tuple[type[Section], ...] = get_args(field.annotation)
    kinds = {of: get_args(of.model_fields[mark.key].annotation) for of in classes}
    every = tuple(kind for names in kinds.values() for kind in names)
    kind_field = Field(default=mark.default, description=mark.meaning)
    keys = {mark.key: Key(FieldInfo.from_annotated_attribute(cast(Any, Literal)[every], kind_field))}
    for name in dict.fromkeys(name for of in classes for name in of.model_fields if name != mark.key):
        owners = [of for of in classes if name in of.model_fields]
        of_kinds = tuple(kind for of in owners for kind in kinds[of])
        shared = len(owners) == len(classes)
        key = Key(owners[0].model_fields[name])
        keys[name] = key if shared else Key(key.field, f"{section}.{mark.key}", of_kinds)
    return {f"{section}.{name}": key for name, key in keys.items()}
