"""Tests the loaders on shards: the batches of the same class folders, bit for bit, for any processes."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.measure.options import merge
from pipeline.config import Config, load_config
from pipeline.data import Loaders, Shard, build_loaders, load_splits
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.loaders import mapped_images
from pipeline.data.loaders.mapped_images import MappedImages
from pipeline.errors import TrainingError
from tests.gpus import NEEDS_GPU
from tests.parity.batches import assert_all_same, assert_holds_no_more, by_ranks
from tests.pictures import make_folder
from tests.shards import load_shards, pack

CPU = torch.device("cpu")
KINDS = ["tar", "parquet"]
PARTS = {"train": "train", "val": "val"}
SHARDS = 3


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return class folders with unusual images, and the same images in shards of either kind."""
    base = tmp_path_factory.mktemp("roots")
    root = make_folder(base / "folder", train=10, test=4, odd=True)
    return {"folder": root, **{kind: pack(root, base / kind, kind, PARTS, SHARDS) for kind in KINDS}}


def config_of(roots: dict[str, Path], kind: str, *overrides: str) -> Config:
    keys = [
        f"data.dataset={'folder' if kind == 'folder' else 'shards'}",
        f"data.root={roots[kind]}",
        *("data.image_size=48", "data.batch_size=12", "data.eval_batch_size=12", "data.num_threads=1"),
        *("augment.cutout=16", "augment.progressive=[[0ep, 32], [2st, 48]]", "precision.mode=fp32"),
        *("seed=3", "duration=3ep"),
    ]
    return load_config(overrides=merge(keys, overrides))


def loaders(roots: dict[str, Path], kind: str, *overrides: str, shard: Shard | None = None) -> Loaders:
    config = config_of(roots, kind, *overrides)
    return build_loaders(config, load_splits(config.data, config.seed), CPU, shard)


@pytest.mark.parametrize("loader", ["dali", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
def test_shards_give_the_batches_of_the_folder(roots: dict[str, Path], kind: str, loader: str, sampler: str):
    keys = (f"data.loader={loader}", f"data.sampler={sampler}")
    ours, theirs = loaders(roots, kind, *keys), loaders(roots, "folder", *keys)
    for split in ("train", "train", "test"):
        assert_all_same(getattr(ours, split), getattr(theirs, split))


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_batches_do_not_depend_on_processes_or_position(roots: dict[str, Path], loader: str):
    key = f"data.loader={loader}"
    whole = loaders(roots, "tar", key).train
    alone = [batch for _ in range(2) for batch in whole]
    for world_size in (2, 3):
        joined = by_ranks(world_size, lambda shard: loaders(roots, "tar", key, shard=shard).train)
        assert_all_same(joined, alone[: whole.steps_per_epoch])
    other = loaders(roots, "tar", key).train
    for position in (2, 0, 0, 1):
        assert_all_same(islice(other.batches_from(position), 2), alone[position : position + 2])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_image_of_every_shard_is_seen(roots: dict[str, Path], world_size: int):
    parts = [loaders(roots, "tar", shard=Shard(rank, world_size)) for rank in range(world_size)]
    seen = torch.cat([batch.indices[batch.valid] for part in parts for batch in part.test])
    assert sorted(seen.tolist()) == list(range(parts[0].test.num_samples))
    trained = torch.cat([batch.indices for part in parts for batch in part.train])
    assert len(trained) == len(set(trained.tolist())) == parts[0].train.num_samples // 12 * 12


def test_the_order_is_random_over_all_shards(roots: dict[str, Path]):
    train = load_shards(roots["tar"]).train
    batch = next(iter(loaders(roots, "tar").train))
    assert set(train.files.members.shard[batch.indices.numpy()].tolist()) == set(range(SHARDS))


# --- mapped files ---


def files_of(root: Path) -> FileSet:
    return load_shards(root, image_size=48).train


@pytest.mark.parametrize("most", [None, 1])
def test_the_views_are_the_bytes_of_the_images(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch, most: Any
):
    """With too few maps for all shards the oldest is given up; views of it stay valid."""
    if most is not None:
        monkeypatch.setattr(mapped_images, "_allow_open_files", lambda _: most)
    files = files_of(roots["tar"])
    mapped, order = MappedImages(files), np.random.default_rng(0).permutation(len(files)).tolist()
    for sample, view in zip(order, mapped.views(order), strict=True):
        file = files.file(sample)
        assert view.tobytes() == (file.read_bytes() if isinstance(file, Path) else file.read())
        assert isinstance(file, Path) == (sample in files.replaced)
    assert len(mapped._maps) == (most or SHARDS)


def test_the_process_may_open_as_many_files_as_there_are_shards(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(mapped_images.resource, "setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr(mapped_images.resource, "getrlimit", lambda _: (1024, 4096))
    assert mapped_images._allow_open_files(100) == 100 and not asked
    assert mapped_images._allow_open_files(2000) == 2000 and asked == [(2512, 4096)]
    assert mapped_images._allow_open_files(9000) == 4096 - 512 and asked[-1] == (4096, 4096)


@pytest.mark.parametrize("loader", ["dali", "reference"])
@pytest.mark.parametrize("change", ["cut", "removed", "other"])
def test_a_shard_that_changes_during_a_run_is_named(tmp_path: Path, loader: str, change: str):
    root = make_folder(tmp_path / "root")
    built = loaders(
        {"tar": pack(root, tmp_path / "tar", "tar", PARTS, 2)}, "tar", f"data.loader={loader}"
    ).train
    victim = tmp_path / "tar/train-00001-of-00002.tar"
    if change == "cut":
        victim.write_bytes(victim.read_bytes()[:1000])
    elif change == "removed":
        victim.unlink()
    else:
        victim.write_bytes(bytes(victim.stat().st_size))
    with pytest.raises(TrainingError, match=rf"images are damaged, or .*(.*\n)+  {victim}:00"):
        list(built)


@pytest.mark.slow
def test_memory_and_files_stay_flat(roots: dict[str, Path]):
    train = loaders(roots, "tar", "augment.progressive=[]").train
    assert_holds_no_more(train, 20, 80)


class TestOnGpu:
    pytestmark = NEEDS_GPU

    @pytest.mark.parametrize(
        "key", ["data.hw_decoder_load=0.0", "data.hw_decoder_load=1.0", "data.decoder=cpu"]
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_shards_give_the_batches_of_the_folder(self, roots: dict[str, Path], kind: str, key: str):
        with torch.cuda.stream(torch.cuda.Stream()):
            device = torch.device("cuda", torch.cuda.current_device())
            ours, theirs = (
                build_loaders(config, load_splits(config.data, config.seed), device)
                for config in (
                    config_of(roots, name, key, "precision.mode=fp16") for name in (kind, "folder")
                )
            )
            for split in ("train", "train", "test"):
                assert_all_same(getattr(ours, split), getattr(theirs, split))
