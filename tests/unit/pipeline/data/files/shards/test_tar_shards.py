"""Tests the index of a tar file: samples, keys and labels, and files that are damaged or packed."""

import gzip
import io
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.files.shards.samples import ShardKeys, ShardSamples
from pipeline.data.files.shards.tar_shards import index_tar
from tests.pictures import encoded, picture
from tests.shards import Member, write_tar

JPEG, PNG = encoded(picture(8, 9)), encoded(picture(8, 9), "PNG")
TWO: list[Member] = [("a.jpg", JPEG), ("a.cls", b"1"), ("b.jpg", PNG), ("b.cls", b" 0\n")]


def index(path: Path, image: str | None = None, label: str | None = None) -> ShardSamples:
    return index_tar(path, ShardKeys(image, label))


def index_of(tmp_path: Path, members: list[Member], *keys: str | None, **options: Any) -> ShardSamples:
    return index(write_tar(tmp_path / "train-0.tar", members, **options), *keys)


def contents(path: Path, samples: ShardSamples) -> list[bytes]:
    """Return the bytes at the places of the images."""
    whole = path.read_bytes()
    return [
        whole[offset : offset + size] for offset, size in zip(samples.offset, samples.num_bytes, strict=True)
    ]


def test_images_are_found_with_their_labels_and_places(tmp_path: Path):
    samples = index_of(tmp_path, TWO)
    assert samples.names == ["a.jpg", "b.jpg"] and samples.labels == ["1", "0"]
    assert contents(tmp_path / "train-0.tar", samples) == [JPEG, PNG]
    assert not samples.without_label and not samples.warnings


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str)
def test_every_form_of_header_is_read(tmp_path: Path, format: int):
    long = "/".join(["folder"] * 12 + ["n" * 90])  # more than a plain header holds
    members: list[Member] = [(f"{long}.jpg", JPEG), (f"{long}.cls", b"2"), *TWO]
    samples = index_of(tmp_path, members, format=format)
    assert samples.names == [f"{long}.jpg", "a.jpg", "b.jpg"] and samples.labels == ["2", "1", "0"]
    assert contents(tmp_path / "train-0.tar", samples) == [JPEG, JPEG, PNG]


def test_members_of_a_sample_may_stand_apart_and_names_may_have_folders(tmp_path: Path):
    """A sample is named by folder and name up to the first dot; what follows is the key, in lower case."""
    members: list[Member] = [
        ("x/a.JPG", JPEG),
        ("y/a.jpg", PNG),
        ("y/a.cls", b"dog"),
        ("x/a.cls", b"cat"),
        ("x/a.seg.png", PNG),
        ("x/._a.jpg", b"junk"),
        ("README", b"no key"),
    ]
    samples = index_of(tmp_path, members)
    assert (samples.names, samples.labels) == (["x/a.JPG", "y/a.jpg"], ["cat", "dog"])


def test_links_and_folders_are_passed_over(tmp_path: Path):
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
        for name, content in TWO:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert index(path).names == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ((None, "json.label"), ["3", "4"]),
        ((None, "JSON.name"), ["a dog", "a cat"]),
        ((None, "txt"), ["dog", "cat"]),
        ((None, "id.txt"), ["7", "8"]),  # the key of a member with a dot in it
        (("JPG", None), ["0", "1"]),
    ],
)
def test_the_keys_choose_image_and_label(
    tmp_path: Path, keys: tuple[str | None, str | None], labels: list[str]
):
    members: list[Member] = []
    for number, name in enumerate(("dog", "cat")):
        members += [
            (f"{number}.jpg", JPEG),
            (f"{number}.cls", str(number).encode()),
            (f"{number}.txt", name.encode()),
            (f"{number}.id.txt", str(7 + number).encode()),
            (f"{number}.json", b'{"label": %d, "name": "a %s"}' % (3 + number, name.encode())),
        ]
    assert index_of(tmp_path, members, *keys).labels == labels


def test_labels_of_json_numbers_and_with_a_mark_of_the_encoding(tmp_path: Path):
    members: list[Member] = [
        ("a.jpg", JPEG),
        ("a.json", b'{"label": 10.0}'),
        ("b.jpg", JPEG),
        ("b.json", b'\xef\xbb\xbf{"label": 2}\r\n'),
    ]
    assert index_of(tmp_path, members, None, "json.label").labels == ["10", "2"]


def test_a_file_without_members_has_no_samples(tmp_path: Path):
    samples = index_of(tmp_path, [])
    assert (samples.names, samples.warnings) == ([], ["it holds no files"]) and not len(samples.offset)


@pytest.mark.parametrize("keys", [(None, None), (None, "json.x")], ids=str)
def test_labels_without_an_image_are_counted(tmp_path: Path, keys: tuple[str | None, ...]):
    labels: list[Member] = [("c.cls", b"1"), ("c.json", b'{"x": 1}'), ("d.cls", b"1"), ("d.json", b"{}")]
    members: list[Member] = [("a.jpg", JPEG), ("a.cls", b"1"), ("a.json", b'{"x": 1}'), ("b.txt", b"note")]
    (warning,) = index_of(tmp_path, [*members, *labels], *keys).warnings
    assert warning.startswith("2 samples have a label, but no image, and are left out, such as c.")


def test_an_image_without_a_label_is_named(tmp_path: Path):
    members: list[Member] = [*TWO, ("c.jpg", JPEG), ("d.jpg", JPEG), ("d.cls", b" ")]
    samples = index_of(tmp_path, members)
    assert samples.names == ["a.jpg", "b.jpg"] and samples.without_label == ["c.jpg", "d.jpg"]


WRONG: dict[str, tuple[list[Member], tuple[str | None, ...], str]] = {
    "two images": (
        [*TWO, ("a.png", PNG)],
        (),
        "sample a has several images, jpg, png; set data.image_key=jpg",
    ),
    "no images": (
        [("a.bin", JPEG), ("a.cls", b"1")],
        (),
        "no member that is an image; the keys are bin, cls: .* such as data.image_key=bin, or pack",
    ),
    "another key": (TWO, ("thumb.jpg",), "no member with the key thumb.jpg; the keys are cls, jpg"),
    "no labels": (
        [("a.jpg", JPEG), ("a.json", b"{}")],
        (),
        "a member 'cls'; there are jpg, json: set data.label",
    ),
    "no field": ([("a.jpg", JPEG), ("a.json", b"{}")], (None, "json.x"), "has a label in a member 'json.x'"),
    "a list": (
        [("a.jpg", JPEG), ("a.json", b"[]")],
        (None, "json.x"),
        "a.json is no text, or no JSON object",
    ),
    "several labels": (
        [("a.jpg", JPEG), ("a.json", b'{"x": [1, 2]}')],
        (None, "json.x"),
        "the field x of a.json is a list, not one label an image",
    ),
    "other labels": ([("a.jpg", JPEG), ("a.txt", b"cat")], (), "such as data.label_key=txt"),
    "images alone": ([("cat/a.jpg", JPEG)], (), "in a member such as 0001.cls beside 0001.jpg"),
    "dots": ([("v1/a.1.jpg", JPEG)], (), "keys are 1.jpg: .* or pack the shards again without dots before"),
    "an array": ([("a.jpg", JPEG), ("a.cls", b"\x93NUMPY\xff")], (), "a.cls is no text, or no JSON object"),
    "nothing": ([("README", b"text")], (), "no member that is an image; the keys are none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_missing_is_named(tmp_path: Path, name: str):
    members, keys, message = WRONG[name]
    with pytest.raises(ValueError, match=message.replace("[", "\\[")):
        index_of(tmp_path, members, *keys)


# --- damaged files ---


def lz4(content: bytes) -> bytes:
    """Return the head of a file of lz4, which Python cannot write."""
    return b"\x04\x22\x4d\x18" + content


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, lz4], ids=["gz", "xz", "lz4"])
def test_a_compressed_tar_file_is_refused_with_the_remedy(tmp_path: Path, pack: Any):
    path = write_tar(tmp_path / "train-0.tar", TWO)
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(
        ValueError,
        match=r"is compressed \((gz|xz|lz4)\), .*mv train-0.tar train-0.tar.(gz|xz|lz4) && (gzip|xz|lz4) -d ",
    ):
        index(path)


def test_every_cut_is_found(tmp_path: Path):
    """`tarfile` itself reads a file that ends between two members, or in a header, without an error."""
    path = write_tar(tmp_path / "train-0.tar", TWO)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    members = end // 512 * 512 + 512  # the last member ends here
    for size in (members - 100, members - 600, 700, 1536 + 100, 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut off|damaged|no member|several"):
            index(path)
    path.write_bytes(whole[: whole.index(b"b.jpg") + 100])  # in a header
    with pytest.raises(ValueError, match=r"^it is cut off; copy it again"):
        index(path)
    path.write_bytes(whole[:members])
    samples = index(path)
    assert samples.names == ["a.jpg", "b.jpg"] and "no end mark" in samples.warnings[0]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path):
    path = write_tar(tmp_path / "train-0.tar", TWO)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"b.jpg")
    whole[at] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(
        ValueError, match=f"the header at byte {at} is damaged, and so the rest cannot be read"
    ):
        index(path)


def test_files_one_after_another_are_refused(tmp_path: Path):
    path = write_tar(tmp_path / "train-0.tar", TWO)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(ValueError, match="goes on after its end mark: several tar files one after another"):
        index(path)


@pytest.mark.parametrize(
    "content", [b"", b"text", 2000 * b"text", 20_480 * b"\0"], ids=["empty", "a", "b", "zeros"]
)
def test_what_is_no_tar_file(tmp_path: Path, content: bytes):
    path = tmp_path / "train-0.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no tar file|no member|zero bytes alone"):
        index(path)
