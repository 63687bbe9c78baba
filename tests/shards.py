"""Packs the images of class folders into shards: tar files (WebDataset) or Parquet files, for tests."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import ShardData
from pipeline.data.datasets.load import load_splits

Member = tuple[str, bytes]


def write_tar(path: Path, members: Iterable[Member], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any]], class_names: Sequence[str] = (), **options: Any
) -> Path:
    """Write rows of `image` and `label`, as the library `datasets` writes them."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([dict(row) for row in rows])
    if class_names:
        features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **options)
    return path


def images_of(root: Path, part: str) -> list[tuple[Path, int]]:
    """Return the images of class folders with their labels, in the order in which a folder is listed."""
    folders = sorted(path for path in (root / part).iterdir() if path.is_dir())
    return [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]


def pack(root: Path, to: Path, kind: str, parts: Mapping[str, str], shards: int = 2) -> Path:
    """Pack class folders into shards, a run of neighbours into each.

    Args:
        root: of the class folders.
        to: folder of the shards.
        kind: `tar` or `parquet`.
        parts: folder of each part, and the first word of the names of its shards.
        shards: of each part.
    """
    for folder, word in parts.items():
        images = images_of(root, folder)
        each = -(-len(images) // shards)
        names = sorted(path.name for path in (root / folder).iterdir() if path.is_dir())
        for number in range(shards):
            some = images[number * each : (number + 1) * each]
            path = to / f"{word}-{number:05d}-of-{shards:05d}.{kind}"
            if kind == "tar":
                write_tar(path, members_of(some))
            else:
                rows = [
                    {"image": {"bytes": file.read_bytes(), "path": file.name}, "label": label}
                    for file, label in some
                ]
                write_parquet(path, rows, names, row_group_size=3)
    return to


def members_of(images: Iterable[tuple[Path, int]]) -> Iterable[Member]:
    for number, (path, label) in enumerate(images):
        yield f"{number:04d}{path.suffix}", path.read_bytes()
        yield f"{number:04d}.cls", str(label).encode()
        yield f"{number:04d}.json", json.dumps({"label": label, "class": path.parent.name}).encode()


def load_shards(root: Path | str, is_main: bool = True, **changes: object) -> Any:
    values = {"dataset": "shards", "root": str(root), "image_size": 8, **changes}
    return load_splits(ShardData.model_validate(values), 0, is_main=is_main)
