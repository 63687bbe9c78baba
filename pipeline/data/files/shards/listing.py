"""Lists the images of a data set in shards, with their classes, as `Listing` describes them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.config import ShardData, path_of
from pipeline.data.files.cache_place import CachePlace
from pipeline.data.files.labels import fraction_among
from pipeline.data.files.listing import Files, Listing, Members, name_classes
from pipeline.data.files.paths import Paths, counted, printable
from pipeline.data.files.shards.index import PartIndex, find_index, read_index
from pipeline.data.files.shards.patterns import LAYOUT, Shard, find_shards
from pipeline.data.files.shards.remote import Copies, is_address
from pipeline.data.files.shards.samples import ShardKeys
from pipeline.errors import UserError

_MAX_NAMED = 10

NumberClasses = Callable[[Sequence[str], Sequence[str]], Mapping[str, int]]


def root_of_shards(config: ShardData) -> Path:
    """Return the folder that the names of shards are relative to, and that holds the cache by default.

    It is `data.root`. Where `data.root` or the pattern of the training shards is an address, it is the folder
    of the copies; and where there is no `data.root`, the folder in an absolute pattern.
    """
    remote = _address_of(config)
    if remote is not None:
        return Copies(config).folder_of(remote)
    root, pattern = path_of("data.root", config.root), config.train_shards
    if pattern is None or root.is_dir():
        return root
    folder = path_of("data.train_shards", re.split(r"[{*?\[]", pattern)[0] + "x").parent
    return folder if folder.is_absolute() else root


def _address_of(config: ShardData) -> str | None:
    """Return the address of the folder of the shards; None if they are on this machine."""
    pattern = config.train_shards
    if pattern is not None and is_address(pattern):
        return pattern.rpartition("/")[0]
    return config.root if is_address(config.root) else None


def list_shards(root: Path, config: ShardData, *, is_main: bool = True, writes: bool = True) -> Listing:
    """List the images in the shards of both parts.

    The labels of both parts are all numbers from 0 on, or all names of classes. Class labels of Parquet files
    are numbers, and their names are the classes.

    Args:
        root: of `root_of_shards`.
        config: the section `data`.
        is_main: True if this process may fetch shards and write the index.
        writes: False: nothing is fetched or written, and the places of images may be missing.

    Returns:
        The listing; its `problems` tell what is wrong with the labels.

    Raises:
        UserError: there are no shards, or one of them cannot be used.
    """
    shards = _find(("train", "test"), root, config, Copies(config, is_main=is_main, may_fetch=writes))
    keys, place = ShardKeys(config.image_key, config.label_key), CachePlace.of(root, config)
    given = shards, keys, place
    index = read_index(*given, is_main=is_main) if writes else find_index(*given)
    (classes, label_of), problems = _number(index, shards), []
    parts = {part: _files(shards[part], one, label_of) for part, one in index.items()}
    warnings = [warning for one in index.values() for warning in one.warnings]
    for part, one in index.items():
        if one.without_label:
            text = _without_label(part, one, config)
            (warnings if config.on_bad_image == "skip" else problems).append(text)
    return Listing(
        root,
        parts,
        classes,
        _sources(root, config),
        kind="shards",
        problems=tuple(problems),
        warnings=tuple(warnings),
        without_label={part: one.without_label for part, one in index.items()},
    )


def list_test_shards(
    root: Path, config: ShardData, number_classes: NumberClasses, place: CachePlace
) -> Listing:
    """List the images in the shards of the test part, without looking at those of the training part.

    Args:
        root: of `root_of_shards`.
        config: the section `data`.
        number_classes: returns the labels of the classes, from all of them and from those with images.
        place: of the cache.

    Returns:
        A listing with the part `test` alone, and without classes.

    Raises:
        UserError: there are no shards, or one of them cannot be used.
    """
    shards = _find(("test",), root, config, Copies(config))
    index = read_index(shards, ShardKeys(config.image_key, config.label_key), place, is_main=True)
    classes, label_of = _number(index, shards)
    used = [classes[number] for number in sorted(set(label_of.values()))]
    new_label = number_classes(classes, used)
    files = _files(
        shards["test"], index["test"], {text: new_label[classes[n]] for text, n in label_of.items()}
    )
    warnings = list(index["test"].warnings)
    if index["test"].without_label:
        warnings.append(_without_label("test", index["test"], config))
    return Listing(
        root,
        {"test": files},
        (),
        _sources(root, config),
        kind="shards",
        warnings=tuple(warnings),
    )


def count_shard_classes(config: ShardData) -> int:
    """Count the classes of the shards; nothing is fetched or written.

    Raises:
        UserError: there are no shards, or one of them cannot be used.
    """
    return len(list_shards(root_of_shards(config), config, writes=False).classes)


def _find(parts: Sequence[str], root: Path, config: ShardData, copies: Copies) -> dict[str, list[Shard]]:
    """Find the shards of some parts."""
    if _address_of(config) is None and not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}; {LAYOUT}")
    return {part: find_shards(part, root, config, copies) for part in parts}


def _files(shards: Sequence[Shard], index: PartIndex, label_of: Mapping[str, int]) -> Files:
    """Describe the images of one part."""
    of_shard = np.array([shard[2:] for shard in shards], np.int64)[index.shard]
    number = np.arange(len(index.shard)) - np.searchsorted(index.shard, index.shard)  # in its shard
    identity = of_shard[:, 2] + number * np.int64(0x9E3779B97F4A7C1)  # overflows as a hash may
    labels = np.array([label_of[text] for text in index.label_names], np.int64)[index.label]
    return Files(
        paths=Paths.of(
            f"{shards[shard].name}:{name}"
            for shard, name in zip(index.shard.tolist(), index.names, strict=True)
        ),
        labels=labels,
        num_bytes=index.num_bytes,
        mtime_ns=of_shard[:, 1].copy(),
        identity=identity,
        members=Members(index.files, index.shard, index.offset),
    )


def _sources(root: Path, config: ShardData) -> dict[str, Path]:
    patterns = {"train": config.train_shards, "test": config.test_shards}
    return {part: root if pattern is None else Path(pattern) for part, pattern in patterns.items()}


def _without_label(part: str, index: PartIndex, config: ShardData) -> str:
    names = [printable(name) for name in index.without_label]
    more = f"\n  and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    listed = "".join(f"\n  {name}" for name in names[:_MAX_NAMED]) + more
    if config.on_bad_image == "skip":
        one, several = "image has no label and is left out", "images have no label and are left out"
        return f"data.{part}_shards: {counted(len(names), one, several)}:{listed}"
    have = counted(len(names), "image has", "images have")
    return (
        f"data.{part}_shards: {have} no label; set data.label_key, pack the shards again, or leave them out "
        f"with data.on_bad_image=skip:{listed}"
    )


def _number(
    index: Mapping[str, PartIndex], shards: Mapping[str, Sequence[Shard]]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the classes, and the number of each label.

    Raises:
        UserError: the labels of a part cannot be numbered.
    """
    texts = {part: one.label_names for part, one in index.items()}
    every = list(dict.fromkeys(text for of_part in texts.values() for text in of_part))
    for part, of_part in texts.items():
        for text in of_part:
            if re.fullmatch(r"-[0-9]+", text):
                image = _first_with(text, index[part], shards[part])
                raise UserError(
                    f"data.{part}_shards: the label {text} of {image} is below 0: images without a label "
                    f"have it; give other shards in data.{part}_shards, or another column or member in "
                    "data.label_key"
                )
    if all(re.fullmatch(r"[0-9]+", text) for text in every):
        return _number_numbers(index, shards, every)
    _refuse_fractions(index, shards)
    classes = tuple(sorted(texts["train" if "train" in texts else "test"]))
    unknown = sorted(set(every) - set(classes))
    if unknown:
        raise UserError(
            f"data.test_shards: has {name_classes(unknown)}, unknown to data.train_shards; add training "
            "images or remove them"
        )
    return classes, {name: number for number, name in enumerate(classes)}


def _refuse_fractions(index: Mapping[str, PartIndex], shards: Mapping[str, Sequence[Shard]]) -> None:
    for part, of_part in index.items():
        wrong = fraction_among(of_part.label_names)
        if wrong is not None:
            raise UserError(
                f"data.{part}_shards: the label {wrong} of {_first_with(wrong, of_part, shards[part])} is no "
                "whole number, and other labels are; correct it, or set data.label_key"
            )


def _first_with(text: str, index: PartIndex, shards: Sequence[Shard]) -> str:
    """Return `SHARD:NAME` of the first image with this label."""
    number = int(np.argmax(index.label == index.label_names.index(text)))
    return printable(f"{shards[index.shard[number]].name}:{index.names[number]}")


def _number_numbers(
    index: Mapping[str, PartIndex], shards: Mapping[str, Sequence[Shard]], texts: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the classes of labels that are numbers: the names that the shards give, or the numbers."""
    names = {one.class_names for one in index.values() if one.class_names}
    if len(names) > 1:
        raise UserError(
            "data.test_shards: these shards name their classes differently from data.train_shards"
        )
    names_there = names.pop() if names else ()
    if "train" not in index and not names_there:  # no class has to have an image
        numbers = sorted({int(text) for text in texts})
        return tuple(map(str, numbers)), {text: numbers.index(int(text)) for text in texts}
    limit = max(sum(len(one.label) for one in index.values()), len(names_there))
    largest = max(texts, key=lambda text: (len(text.lstrip("0")), text.lstrip("0")))
    if len(largest.lstrip("0")) > len(str(limit)) or int(largest) >= limit:
        part = next(part for part, one in index.items() if largest in one.label_names)
        shown = largest if len(largest) <= 20 else f"{largest[:17]}..."
        raise UserError(
            f"data.{part}_shards: the label {shown} of {_first_with(largest, index[part], shards[part])} is "
            f"too large: there are {limit} images, and labels are the numbers of the classes, from 0 on; "
            "correct it, number the classes without gaps, or set data.label_key"
        )
    label_of = {text: int(text) for text in texts}
    count = max(label_of.values()) + 1
    if names_there and count > len(names_there):
        part = next(part for part, one in index.items() if largest in one.label_names)
        raise UserError(
            f"data.{part}_shards: the label {count - 1} of {_first_with(largest, index[part], shards[part])} "
            f"has no name among the {len(names_there)} class labels; correct the metadata of the shards, or "
            "set data.label_key"
        )
    return names_there or tuple(map(str, range(count))), label_of
