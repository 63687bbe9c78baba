"""Tests the index of a Parquet file: columns of images and labels, and the copy of the images."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.data.files.shards.parquet_shards import index_parquet
from pipeline.data.files.shards.samples import CannotWriteImages, ShardKeys, ShardSamples
from tests.pictures import encoded, picture
from tests.shards import write_parquet

IMAGES = [encoded(picture(8, 9, seed)) for seed in range(7)]
LABELS = [0, 1, 1, 0, 1, 0, 0]
ROWS: list[dict[str, Any]] = [
    {"image": {"bytes": image, "path": f"some/{number}.jpg"}, "label": label}
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))
]


def index(path: Path, image: str | None = None, label: str | None = None) -> tuple[ShardSamples, list[bytes]]:
    """Return the samples, and the bytes at the places of the images in the copy."""
    out = io.BytesIO()
    samples = index_parquet(path, ShardKeys(image, label), out)
    copy = out.getvalue()
    return samples, [
        copy[offset : offset + size] for offset, size in zip(samples.offset, samples.num_bytes, strict=True)
    ]


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zstd"}, {"row_group_size": 2}, {"use_dictionary": False}], ids=str
)
def test_the_layout_of_hugging_face(tmp_path: Path, options: dict[str, Any]):
    path = write_parquet(tmp_path / "a.parquet", ROWS, ["cat", "dog"], **options)
    samples, copied = index(path)
    assert copied == IMAGES and samples.labels == [str(label) for label in LABELS]
    assert samples.names[:2] == ["0/0.jpg", "1/1.jpg"] and samples.class_names == ("cat", "dog")


def test_many_rows_are_read_in_turn(tmp_path: Path):
    rows = [{"image": {"bytes": b"%d" % number, "path": None}, "label": number} for number in range(1000)]
    samples, copied = index(write_parquet(tmp_path / "a.parquet", rows))
    assert copied == [b"%d" % number for number in range(1000)]
    assert samples.names == [str(number) for number in range(1000)] == samples.labels


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int8(), pa.binary()),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
    ],
    ids=str,
)
def test_plain_bytes_and_other_types(tmp_path: Path, kind: Any):
    values = [{"bytes": image, "path": "x"} for image in IMAGES] if pa.types.is_struct(kind) else IMAGES
    path = write(tmp_path / "a.parquet", img=pa.array(values, kind), other=[0.5] * 7, label=LABELS)
    samples, copied = index(path)
    assert copied == IMAGES and samples.labels == [str(label) for label in LABELS] and not samples.class_names


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_labels_may_be_names(tmp_path: Path, kind: Any):
    names = pa.array(["dog" if label else "cat" for label in LABELS]).cast(kind)
    samples, _ = index(write(tmp_path / "a.parquet", image=IMAGES, label=names))
    assert samples.labels[:2] == ["cat", "dog"]


def test_rows_without_a_label_or_without_bytes(tmp_path: Path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [
        {"bytes": IMAGES[0], "path": "a"},
        None,
        {"bytes": None, "path": "c"},
        {"bytes": IMAGES[3], "path": "d"},
    ]
    path = write(tmp_path / "a.parquet", image=pa.array(images, kind), label=[0, 1, 1, None])
    samples, copied = index(path)
    assert samples.without_label == ["3"] and samples.names == ["0/a", "1", "2/c"]
    assert copied == [IMAGES[0], b"", b""]  # the scan tells of images without bytes


def test_the_only_class_label_is_the_label(tmp_path: Path):
    table = pa.table({"img": IMAGES, "number": LABELS, "fine_label": LABELS})
    metadata = b'{"info": {"features": {"fine_label": {"_type": "ClassLabel", "names": ["x", "y"]}}}}'
    parquet.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "a.parquet")
    samples, _ = index(tmp_path / "a.parquet")
    assert samples.class_names == ("x", "y")


def test_the_keys_choose_the_columns(tmp_path: Path):
    path = write(tmp_path / "a.parquet", image=IMAGES, small=IMAGES[::-1], label=LABELS, coarse=LABELS[::-1])
    samples, copied = index(path, "small", "coarse")
    assert copied == IMAGES[::-1] and samples.labels == [str(label) for label in LABELS[::-1]]


WRONG: dict[str, tuple[dict[str, Any], tuple[str | None, ...], str]] = {
    "two images": (
        {"a": IMAGES, "b": IMAGES, "label": LABELS},
        (),
        "2 columns may be the image, a, b; set data.image_key, such as data.image_key=a$",
    ),
    "no image": (
        {"a": LABELS, "label": LABELS},
        (),
        "no column is the image, .*its columns are a, label; pack",
    ),
    "empty labels": (
        {"image": IMAGES, "label": pa.array([None] * 7, pa.int64())},
        (),
        "column label is empty in all rows; pack the shards again with a column of labels",
    ),
    "empty labels beside others": (
        {"image": IMAGES, "label": pa.array([None] * 7, pa.int64()), "fine": LABELS},
        (),
        "empty in all rows; set data.label_key, such as data.label_key=fine$",
    ),
    "no label": (
        {"image": IMAGES},
        (),
        "no column is the label, which is an integer or a text; its columns are image; pack the shards again",
    ),
    "a flag alone": (
        {"image": IMAGES, "is_cat": [True] * 7},
        (),
        "no column is the label, .*; set data.label_key, such as data.label_key=is_cat$",
    ),
    "two labels": (
        {"image": IMAGES, "a": LABELS, "b": LABELS},
        (),
        "2 columns may be the label, a, b; set data.label_key, such as data.label_key=a$",
    ),
    "no such image": (
        {"image": IMAGES, "label": LABELS},
        ("x",),
        r"no column x \(data.image_key\), but image, label; set .*, such as data.image_key=image$",
    ),
    "no such label": (
        {"image": IMAGES, "a": LABELS, "label": LABELS},
        (None, "x"),
        r"no column x \(data.label_key\), but image, a, label; set .*, such as data.label_key=label$",
    ),
    "no such label, nor the usual one": (
        {"image": IMAGES, "weight": [0.5] * 7, "fine": LABELS},
        (None, "x"),
        "but image, weight, fine; set data.label_key, such as data.label_key=fine$",
    ),
    "no label at all": ({"image": IMAGES}, (None, "x"), "but image; pack the shards again with a column of"),
    "numbers": (
        {"image": IMAGES, "label": LABELS},
        ("label",),
        "column label holds int64, not encoded images; set .*, such as data.image_key=image$",
    ),
    "fractions": (
        {"image": IMAGES, "label": [0.5] * 7, "fine": LABELS},
        (),
        "column label holds double, not one label an image; set .*, such as data.label_key=fine$",
    ),
    "several": (
        {"image": IMAGES, "label": [[1, 2]] * 7},
        (),
        "column label holds list.*, not one label an image",
    ),
    "paths alone": (
        {"image": [{"bytes": None, "path": "a"}] * 7, "label": LABELS},
        ("image",),
        "not encoded|no bytes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, name: str):
    columns, keys, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        index(write(tmp_path / "a.parquet", **columns), *keys)


def test_a_file_without_rows_has_no_samples(tmp_path: Path):
    path = write(tmp_path / "a.parquet", image=pa.array([], pa.binary()), label=pa.array([], pa.int64()))
    samples, copied = index(path)
    assert (samples.names, copied, samples.warnings) == ([], [], ["it holds no rows"])


def test_images_saved_as_paths_alone(tmp_path: Path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "a.jpg"}] * 3, kind)
    with pytest.raises(ValueError, match="holds no bytes, only paths; embed the images"):
        index(write(tmp_path / "a.parquet", image=images, label=[0, 1, 0]))


def test_damage_is_one_line(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    whole = path.read_bytes()
    for content in (
        b"",
        b"text",
        whole[:-10],
        whole[: len(whole) // 2] + bytes(50) + whole[len(whole) // 2 + 50 :],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^it is no Parquet file, or damaged \(.*\); copy it again$"):
            index(path)


def test_a_full_disk_is_told_apart_from_a_damaged_file(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(CannotWriteImages) as caught:
        index_parquet(path, ShardKeys(None, None), full)
    assert isinstance(caught.value.__cause__, OSError)
