"""Finds the images and labels in a Parquet file with encoded images, as Hugging Face's data sets have them.

The pages of such a file are compressed, so that an image cannot be read at an offset: the images are copied,
one after another, into a file of the cache.
"""

import json
from collections.abc import Sequence
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.files.paths import printable
from pipeline.data.files.shards.samples import CannotWriteImages, ShardKeys, ShardSamples
from pipeline.errors import UserError

_ROWS = 256  # read at once
_IMAGE, _LABEL = "image", "label"  # names of the columns, where several fit
_FORMS = {_IMAGE: "a struct of bytes and path, or plain bytes", _LABEL: "an integer or a text"}


def index_parquet(path: Path, keys: ShardKeys, out: RawIOBase | BytesIO | None) -> ShardSamples:
    """Find the samples of a Parquet file, and copy the images.

    An image is a struct of `bytes` and `path`, or plain bytes; a label is an integer, a text, or a class
    label, whose names the file's metadata give.

    Args:
        path: of the file.
        keys: names of the columns.
        out: the images are written here, one after another; None: they are not read, and their places are 0.

    Raises:
        ValueError: the file is damaged, or has no such columns.
        OSError: the file cannot be read.
        CannotWriteImages: `out` cannot be written.
        UserError: pyarrow is not installed.
    """
    parquet, arrow = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            image, label, class_names, others = _choose_columns(file.schema_arrow, keys, arrow)
            columns = [label] if out is None else [image, label]
            result, rows = ShardSamples(class_names=class_names), 0
            offsets, sizes, end = [], [], 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                labels = batch.column(label).to_pylist()
                known = [number for number, value in enumerate(labels) if value is not None]
                result.without_label += [str(rows + n) for n, value in enumerate(labels) if value is None]
                result.labels += [str(labels[number]) for number in known]
                copied = _copy_images(batch.column(image), out, arrow) if out is not None else None
                names, lengths = copied or ([""] * len(labels), np.zeros(len(labels), np.int64))
                result.names += [f"{rows + number}{names[number]}" for number in known]
                starts = end + np.cumsum(lengths) - lengths
                offsets.append(starts[known])
                sizes.append(lengths[known])
                end, rows = end + int(lengths.sum()), rows + len(labels)
    except (arrow.ArrowException, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # not of pyarrow: the file cannot be read
        raise ValueError(f"it is no Parquet file, or damaged ({_first_line(error)}); copy it again") from None
    if not rows:
        result.warnings.append("it holds no rows")
    if rows and not result.labels:
        raise ValueError(f"its column {printable(label)} is empty in all rows; {_remedy('label', others)}")
    if out is not None and rows and not end:
        raise ValueError(
            f"its column {printable(image)} holds no bytes, only paths; embed the images when you save it"
        )
    result.offset, result.num_bytes = (
        np.concatenate([np.empty(0, np.int64), *parts]) for parts in (offsets, sizes)
    )
    return result


def import_pyarrow() -> tuple[Any, Any]:
    """Return the modules pyarrow.parquet and pyarrow.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            "data.dataset: Parquet files are read with pyarrow, which is not installed: "
            "pip install 'quickres[parquet]'"
        ) from None
    return parquet, arrow


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Columns(NamedTuple):
    """The columns that are read: of the images and of the labels; the names of the classes, if they are
    known; and the other columns that may be the label."""

    image: str
    label: str
    class_names: tuple[str, ...]
    other_labels: list[str]


def _choose_columns(schema: Any, keys: ShardKeys, arrow: Any) -> _Columns:
    features = _features(schema)
    images = [field.name for field in schema if _holds_images(field.type, arrow)]
    image = _choose("image", keys.image or (_IMAGE if _IMAGE in images else None), images, schema.names)
    if image not in images:
        kind = schema.field(image).type
        raise ValueError(
            f"its column {printable(image)} holds {kind}, not encoded images; {_remedy('image', images)}"
        )
    labels = [name for name in schema.names if _class_names(features.get(name))] or [
        field.name
        for field in schema
        if field.name != image and (arrow.types.is_integer(field.type) or _is_text(field.type, arrow))
    ]
    flags = [field.name for field in schema if arrow.types.is_boolean(field.type)]
    usual = _LABEL if _LABEL in schema.names else None
    label = _choose("label", keys.label or usual, labels, schema.names, flags)
    others = [name for name in (*labels, *flags) if name != label]
    kind = schema.field(label).type
    if not (arrow.types.is_integer(kind) or _is_text(kind, arrow) or arrow.types.is_boolean(kind)):
        raise ValueError(
            f"its column {printable(label)} holds {kind}, not one label an image; {_remedy('label', others)}"
        )
    return _Columns(image, label, _class_names(features.get(label)), others)


def _choose(
    what: str, given: str | None, fitting: Sequence[str], names: Sequence[str], on_demand: Sequence[str] = ()
) -> str:
    """Return the column that is given, or the only one that fits; those ON_DEMAND have to be given."""
    remedy, there = _remedy(what, [*fitting, *on_demand]), ", ".join(map(printable, names))
    if given is not None:
        if given not in names:
            raise ValueError(f"it has no column {printable(given)} (data.{what}_key), but {there}; {remedy}")
        return given
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        several = ", ".join(map(printable, fitting))
        raise ValueError(f"{len(fitting)} columns may be the {what}, {several}; {remedy}")
    raise ValueError(f"no column is the {what}, which is {_FORMS[what]}; its columns are {there}; {remedy}")


def _remedy(what: str, fitting: Sequence[str]) -> str:
    if not fitting:
        return f"pack the shards again with a column of {what}s"
    example = what if what in fitting else fitting[0]
    return f"set data.{what}_key, such as data.{what}_key={printable(example)}"


def _holds_images(kind: Any, arrow: Any) -> bool:
    if arrow.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type, arrow)
    return _is_binary(kind, arrow)


def _is_binary(kind: Any, arrow: Any) -> bool:
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    types = arrow.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: Any, arrow: Any) -> bool:
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    types = arrow.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _features(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's library has written about the columns; empty without it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...]:
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _copy_images(column: Any, out: RawIOBase | BytesIO, arrow: Any) -> tuple[list[str], np.ndarray]:
    """Write the images of some rows; return a suffix of their names, and their bytes: (N,) int64.

    A row without bytes has 0 of them.
    """
    paths: list[str | None] = [None] * len(column)
    content = column
    if arrow.types.is_struct(column.type):
        children = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        content = children["bytes"]
        paths = children["path"].to_pylist() if "path" in children else paths
    content = content.cast(arrow.large_binary())
    _, starts, data = content.buffers()
    ends = np.frombuffer(starts, np.int64)[content.offset : content.offset + len(content) + 1]
    if data is not None:
        _write(out, memoryview(data)[ends[0] : ends[-1]])
    return [f"/{Path(path).name}" if path else "" for path in paths], np.diff(ends)


def _write(out: RawIOBase | BytesIO, content: memoryview) -> None:
    """Write all bytes; a file without a buffer takes 2 GiB at once, at most."""
    try:
        while content:
            content = content[out.write(content) :]
    except OSError as error:
        raise CannotWriteImages from error
