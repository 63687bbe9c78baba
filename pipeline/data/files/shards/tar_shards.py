"""Finds the images and labels in a tar file of the WebDataset layout.

The members of one sample have the same name up to its first dot: `0001.jpg` and `0001.cls`.
"""

import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.data.files.image_formats import SUFFIXES
from pipeline.data.files.paths import counted, printable
from pipeline.data.files.shards.patterns import unpacking
from pipeline.data.files.shards.samples import ShardKeys, ShardSamples

_DEFAULT_LABEL = "cls"
_LABEL_KEYS = (_DEFAULT_LABEL, "cls2", "json", "txt")
_IMAGE_KEYS = {suffix[1:] for suffix in SUFFIXES}
_BLOCK = tarfile.BLOCKSIZE
_CUT_OFF = "it is cut off; copy it again, or pack it again"
_EMPTY = tarfile.RECORDSIZE  # bytes, at most, of a file that was packed without members
_LONGEST_LABEL = 2**20  # bytes of a member that holds a label, perhaps beside other fields
_PACKED = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"\x04\x22\x4d\x18": "lz4",
}


class _Member(NamedTuple):
    name: str
    offset: int
    num_bytes: int


_Places = dict[str, dict[str, _Member]]  # by sample and key


def index_tar(path: Path, keys: ShardKeys) -> ShardSamples:
    """Find the samples of a tar file, from the headers of its members.

    A file without members is a shard without samples, as writers with fixed numbers of shards make them.

    Raises:
        ValueError: the file is compressed, damaged, cut off or no tar file; or no member is an image, or a
            sample holds several.
        OSError: the file cannot be read.
    """
    result = ShardSamples()
    with path.open("rb") as file:
        _refuse_packed(path, file.read(8))
        places = _read_members(path, result)
        if places is None:
            return result
        descriptor = file.fileno()
        image_of = _choose_images(places, keys.image)
        found = []
        for sample, image_key in image_of.items():
            image, label = places[sample][image_key], _read_label(descriptor, places[sample], keys.label)
            if label is None:
                result.without_label.append(image.name)
            else:
                result.labels.append(label)
                found.append(image)
    result.names = [image.name for image in found]
    result.offset = np.array([image.offset for image in found], np.int64)
    result.num_bytes = np.array([image.num_bytes for image in found], np.int64)
    if not found:
        keys_there = sorted({key for members in places.values() for key in members})
        wanted = keys.label or _DEFAULT_LABEL
        raise ValueError(
            f"no image has a label in a member {wanted!r}; there are {_listed(keys_there)}: "
            f"{_label_remedy(keys_there)}"
        )
    _tell_of_labels_alone(places, image_of, keys.label, result)
    return result


def _label_remedy(keys_there: Sequence[str]) -> str:
    others = [key for key in keys_there if key.rpartition(".")[2] not in _IMAGE_KEYS]
    if not others:
        return f"pack each image with its label, in a member such as 0001.{_DEFAULT_LABEL} beside 0001.jpg"
    example = "json.label" if "json" in others else others[0]
    return f"set data.label_key, such as data.label_key={printable(example)}"


def _tell_of_labels_alone(
    places: _Places, image_of: Mapping[str, str], label_key: str | None, result: ShardSamples
) -> None:
    """Warn of samples with a label and no image: their key may be another one."""
    key = (label_key or _DEFAULT_LABEL).lower()
    keys = (key, key.partition(".")[0])
    alone = [
        members[found].name
        for sample, members in places.items()
        if sample not in image_of and (found := next((one for one in keys if one in members), None))
    ]
    if alone:
        left_out = counted(
            len(alone),
            "sample has a label, but no image, and is left out",
            "samples have a label, but no image, and are left out",
        )
        result.warnings.append(f"{left_out}, such as {printable(alone[0])}; is data.image_key right?")


def _refuse_packed(path: Path, head: bytes) -> None:
    for magic, suffix in _PACKED.items():
        if head.startswith(magic):
            raise ValueError(
                f"it is compressed ({suffix}), and images are read in random order; unpack it first: "
                f"mv {printable(path.name)} {printable(path.name)}.{suffix} && "
                f"{unpacking(f'{path.name}.{suffix}')}"
            )


def _read_members(path: Path, result: ShardSamples) -> _Places | None:
    """Return the places of all plain members, by sample and key; None if the file has no members at all."""
    places: _Places = {}
    member = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, key = name.partition(".")
                if member.isreg() and stem and dot and not member.issparse():
                    members = places.setdefault(folder + slash + stem, {})
                    members[key.lower()] = _Member(member.name, member.offset_data, member.size)
            end = tar.offset
    except tarfile.TarError as error:
        cut_off = "unexpected end" in str(error)
        damaged = f"it is no tar file, or damaged ({error}); copy it again, or pack it again"
        raise ValueError(_CUT_OFF if cut_off else damaged) from None
    _check_end(path, end, result)
    if member is None:
        if path.stat().st_size > _EMPTY:
            raise ValueError("it holds zero bytes alone; copy it again")
        result.warnings.append("it holds no files")
        return None
    return places


def _check_end(path: Path, end: int, result: ShardSamples) -> None:
    """Check that the members end where the file ends: `tarfile` takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(_BLOCK)
        if rest and not any(rest):
            while rest and not any(rest):
                rest = file.read(64 * _BLOCK)
            if rest:
                raise ValueError(
                    "it goes on after its end mark: several tar files one after another? Pack it again as one"
                )
        elif len(rest) in range(1, _BLOCK):  # `tarfile` takes half a header for the end, too
            raise ValueError(_CUT_OFF)
        elif rest:
            raise ValueError(
                f"the header at byte {end} is damaged, and so the rest cannot be read; copy it again"
            )
        else:
            result.warnings.append("it has no end mark: was it copied to its end?")


def _choose_images(places: _Places, image_key: str | None) -> Mapping[str, str]:
    """Return the key of the image of each sample that has one."""
    image_of = {}
    for sample, members in places.items():
        if image_key is not None:
            fitting = [image_key.lower()] if image_key.lower() in members else []
        else:
            fitting = [key for key in members if key in _IMAGE_KEYS]
        if len(fitting) > 1:
            raise ValueError(
                f"the sample {printable(sample)} has several images, {_listed(fitting)}; "
                f"set data.image_key={fitting[0]}"
            )
        if fitting:
            image_of[sample] = fitting[0]
    if not image_of:
        keys_there = sorted({key for members in places.values() for key in members})
        wanted = f"with the key {image_key}" if image_key else "that is an image"
        raise ValueError(
            f"no member {wanted}; the keys are {_listed(keys_there)}: the key of a member is what follows "
            f"the first dot in its name; set data.image_key{_example(keys_there)}, or pack the shards again "
            "without dots before the key"
        )
    return image_of


def _example(keys: Sequence[str]) -> str:
    """Return an example of `data.image_key`: the first key that is none of the usual ones of labels."""
    others = [key for key in keys if key not in _LABEL_KEYS]
    return f", such as data.image_key={printable(others[0])}" if others else ""


def _read_label(descriptor: int, members: Mapping[str, _Member], label_key: str | None) -> str | None:
    """Return the label of a sample; None if it has none."""
    key, field = (label_key or _DEFAULT_LABEL).lower(), ""
    if key not in members and label_key is not None:
        key, _, field = label_key.partition(".")
    member = members.get(key.lower())
    if member is None:
        return None
    name = printable(member.name)
    if member.num_bytes > _LONGEST_LABEL:
        raise ValueError(f"{name} is too long for a label ({member.num_bytes} bytes); set data.label_key")
    content = os.pread(descriptor, member.num_bytes, member.offset)
    try:
        text = content.decode("utf-8-sig")  # some editors write a mark of the encoding first
        value = json.loads(text).get(field) if field else text
    except (ValueError, AttributeError):
        raise ValueError(f"{name} is no text, or no JSON object; set data.label_key") from None
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "a mapping"
        raise ValueError(
            f"the field {printable(field)} of {name} is {kind}, not one label an image; set data.label_key"
        )
    if value is None:
        return None
    text = str(value).strip()
    return re.sub(r"^([0-9]+)\.0+$", r"\1", text) or None  # an index that was kept as a float


def _listed(keys: Sequence[str], most: int = 8) -> str:
    return ", ".join(map(printable, keys[:most])) + (", …" if len(keys) > most else "") if keys else "none"
