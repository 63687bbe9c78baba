"""Tests the registry of shipped weights: names, damaged files, and the weights themselves."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.publish.prices import recipe_path
from benchmarks.publish.records import Record, read
from pipeline.errors import UserError
from pipeline.pretrained import registry
from pipeline.pretrained.registry import (
    Shipped,
    find_shipped,
    list_names,
    read_registry,
    write_registry,
)
from tests.shipped import check_accuracy, check_record, check_weights

MOST_BYTES = 5_000_000  # of all weights files together
ROOT_VARIABLE = "CIFAR10_ROOT"
SHIPPED = sorted(read_registry())


def an_entry(**changes: Any) -> dict[str, Any]:
    entry = {
        "file": "a.safetensors",
        "sha256": "0" * 64,
        "num_parameters": 1,
        "recipe": "a",
        "config": {},
        "inputs": {"class_names": ["x", "y"], "mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 8},
        "data": "CIFAR-10",
        "seed": 0,
        "commit": "a" * 40,
        "accuracy": 0.5,
        "accuracy_float32": 0.5,
        "accuracy_in_training": 0.5,
        "num_test_images": 8,
        "licence": "Apache-2.0",
    }
    return entry | changes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with the entry `a`, in a folder of its own; the current folder is another one."""
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "registry.json").write_text(json.dumps({"a": an_entry()}))
    monkeypatch.setattr(registry, "folder", lambda: folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_name_is_found_and_a_path_is_not(folder: Path):
    found = find_shipped("a")
    assert found is not None and (found.name, found.path) == ("a", folder / "a.safetensors")
    assert find_shipped(Path("a")) == found
    for other in ("b", "./b/a", "a.safetensors", "", ".", "a" * 5000, "a\0"):
        assert find_shipped(other) is None
    assert list_names() == "a"


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_a_file_or_folder_of_that_name_wins(make: Any, folder: Path):
    make(Path("a"))
    assert find_shipped("a") is None


def test_the_registry_comes_back_as_it_was(folder: Path):
    before = read_registry()
    other = Shipped.model_validate({**an_entry(seed=3), "name": "B"})
    write_registry({**before, "B": other})
    assert read_registry() == {"B": other, "a": before["a"]}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{", "cannot be read"),
        ("[]", "the whole file"),
        ('{"a": 1}', "see a"),
        (json.dumps({"a": an_entry(sha256="x")}), "see a.sha256"),
        (json.dumps({"a": an_entry(accuracy=91.3)}), "see a.accuracy"),
        (json.dumps({"a": an_entry(unknown=1)}), "see a.unknown"),
    ],
)
def test_a_damaged_registry_is_one_message(content: str, place: str, folder: Path):
    (folder / "registry.json").write_text(content)
    with pytest.raises(UserError, match=rf"registry\.json: .*{place}.*; install the project again"):
        find_shipped("a")
    Path("a").mkdir()
    assert find_shipped("a") is None  # a run does not need the registry


def test_a_missing_or_damaged_file_is_one_message(folder: Path):
    found = find_shipped("a")
    assert found is not None
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be read \(No such file"):
        found.verified_path()
    found.path.write_bytes(b"something")
    with pytest.raises(UserError, match=r"a\.safetensors: damaged \(its SHA-256"):
        found.verified_path()


# --- the weights that are shipped ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_those_of_their_card_and_their_record(name: str):
    shipped = read_registry()[name]
    check_weights(shipped)
    check_record(shipped, read())
    assert recipe_path(shipped.recipe).is_file()


def test_shipped_weights_are_small():
    files = [shipped.path for shipped in read_registry().values()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    assert sorted(registry.folder().glob("*.safetensors")) == sorted(files)
    cards = [shipped.card for shipped in read_registry().values()]
    assert sorted(registry.folder().glob("*.md")) == sorted([*cards, registry.folder() / "README.md"])


@pytest.mark.cifar10
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set")
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_have_the_recorded_accuracy(name: str):
    check_accuracy(read_registry()[name], Path(os.environ[ROOT_VARIABLE]))


# --- the checks of the weights ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "agrees"),
    [
        ({}, True),
        ({"variant": "b"}, False),  # of another recipe
        ({"data": "other images"}, False),
        ({"commit": "b" * 40}, False),
        ({"seeds": None}, False),
        ({"seeds": (1, 2)}, False),
        ({"parameters": 2}, False),
        ({"accuracy": 0.494}, True),  # three runs, σ .005: each within .0058 of the mean, and .002
        ({"accuracy": 0.492}, False),
    ],
)
def test_weights_are_compared_with_the_record_of_their_recipe(record: dict[str, Any], agrees: bool):
    shipped = Shipped.model_validate({**an_entry(), "name": "a"})
    fields = {
        "benchmark": "recipe",
        "variant": "a",
        "data": "CIFAR-10",
        "commit": "a" * 40,
        "seeds": (0, 1, 2),
    }
    figures = {"parameters": 1, "accuracy": 0.501, "accuracy_std": 0.005, "accuracy_n": 3}
    records = [Record.model_construct(**{**fields, **figures, **record})]
    with nullcontext() if agrees else pytest.raises(AssertionError):
        check_record(shipped, records)
