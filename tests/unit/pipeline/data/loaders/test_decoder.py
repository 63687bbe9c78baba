"""Tests which hardware `data.decoder: auto` chooses, and what a continued run decodes with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from pipeline.atomic_io import write_json
from pipeline.config import Config, config_hash, dump_config, load_config
from pipeline.data import build_loaders, load_splits
from pipeline.data.loaders.decoder import Decoder, choose_decoder, share_on_gpu
from pipeline.data.loaders.jpeg_engines import count_jpeg_engines
from pipeline.run.environment_record import changed_decoder, decoder_of
from pipeline.run.folder import RunFolder
from tests.gpus import needs_gpu
from tests.pictures import make_folder

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
PROGRESSIVE = "augment.progressive=[[0%, 160], [75%, 192]]"


def config_of(*overrides: str) -> Config:
    return load_config(
        overrides=[
            "data.dataset=folder",
            "data.root=x",
            "data.image_size=192",
            "augment.cutout=0",
            *overrides,
        ]
    )


def choose(*overrides: str, cores: int = 16, engines: int = 7, **arguments: Any) -> tuple[str, str]:
    with (
        patch("pipeline.process.cores.usable_cores", lambda: cores),
        patch("pipeline.data.loaders.decoder.count_jpeg_engines", lambda _: engines),
    ):
        decoder = choose_decoder(config_of(*overrides), arguments.pop("device", GPU), **arguments)
    return decoder.name, decoder.describe()


@pytest.mark.parametrize(
    ("overrides", "machine", "name", "reason"),
    [
        ([], {"device": CPU}, "cpu", "there is no GPU"),
        (["data.decoder=both"], {"device": CPU}, "cpu", "there is no GPU"),
        (["data.num_threads=14"], {}, "cpu", "14 CPU threads are enough"),
        (["data.num_threads=14", PROGRESSIVE], {}, "both", "at smaller sizes"),
        (["data.num_threads=14"], {"cores": 8}, "gpu", "7 JPEG engines, and 8 CPU threads would"),
        (["data.num_threads=14", "data.gpu_share=.2"], {}, "both", "helps with data.gpu_share"),
        (["data.num_threads=14", "data.gpu_share=0", PROGRESSIVE], {}, "cpu", "14 CPU threads are enough"),
        (["data.num_threads=14"], {"cores": 8, "engines": 0}, "cpu", "8 CPU threads are enough"),
        ([], {"engines": 0}, "gpu", "no JPEG engine, and 4 CPU threads (data.num_threads)"),
        (["data.decoder=cpu"], {}, "cpu", "as data.decoder says"),
        (["data.num_threads=14"], {"began_with": "gpu"}, "gpu", "the run used it before"),
        (["data.num_threads=14", "data.decoder=cpu"], {"began_with": "gpu"}, "cpu", "as data.decoder says"),
    ],
)
def test_what_is_chosen_and_why(overrides: list[str], machine: dict[str, Any], name: str, reason: str):
    chosen, line = choose(*overrides, **machine)
    assert chosen == name and line.startswith(f"decoder {name}: ") and reason in line


@pytest.mark.parametrize(
    ("recipe", "cores", "name"),
    [
        ("imagenet_resnet50", 16, "both"),
        ("imagenet_resnet50", 8, "gpu"),
        ("imagenet_resnet50_v2", 16, "cpu"),
        ("finetune_resnet50", 16, "gpu"),
    ],
)
def test_recipes_leave_the_choice_to_the_machine(recipe: str, cores: int, name: str):
    """Training at small sizes must not wait for the CPU: the GPU helps where images grow."""
    with (
        patch("pipeline.process.cores.usable_cores", lambda: cores),
        patch("pipeline.data.loaders.decoder.count_jpeg_engines", lambda _: 7),
    ):
        assert choose_decoder(load_config(f"configs/{recipe}.yaml"), GPU).name == name


def test_processes_of_a_host_share_its_cores():
    world = SimpleNamespace(local_size=2)
    with patch("pipeline.data.loaders.decoder.read_world", lambda: world):
        assert choose("data.num_threads=14", cores=16)[0] == "gpu"
        assert choose("data.num_threads=14", cores=28)[0] == "cpu"


def test_a_process_takes_the_decoder_of_all(tmp_path: Path):
    keys = ["data.dataset=folder", f"data.root={make_folder(tmp_path)}", "data.image_size=16"]
    keys += ["data.cache_below=8", "augment.cutout=0", "data.batch_size=2", "data.eval_batch_size=2"]
    config = load_config(overrides=keys)
    splits = load_splits(config.data, seed=0)
    chosen = Decoder("cpu", "by rank 0")
    assert build_loaders(config, splits, CPU, decoder=chosen).decoder == chosen
    assert build_loaders(config, splits, CPU).decoder == Decoder("cpu", "there is no GPU")


def test_the_share_of_the_gpu_grows_as_images_shrink():
    shares = [share_on_gpu("both", None, size, 192) for size in (96, 160, 192)]
    assert shares == pytest.approx([0.75, 1 - (160 / 192) ** 2, 0])
    assert share_on_gpu("both", None, None, 192) == 0  # evaluation
    assert share_on_gpu("both", 0.3, 192, 192) == share_on_gpu("both", 0.3, None, 192) == 0.3
    assert share_on_gpu("gpu", 0.3, 96, 192) == 1 and share_on_gpu("cpu", 0.3, 96, 192) == 0


def test_a_run_of_an_older_version_is_still_found_and_keeps_its_decoder(tmp_path: Path):
    """Older versions had `gpu` as the default, which their config.yaml holds, and recorded no decoder."""
    assert config_hash(config_of()) == config_hash(config_of("data.decoder=gpu"))
    assert config_hash(config_of()) != config_hash(config_of("data.decoder=cpu"))
    run = RunFolder(tmp_path)
    run.config.write_text(dump_config(config_of("data.decoder=gpu")))
    assert decoder_of(run) == "gpu" and decoder_of(None) is None
    run.config.write_text(dump_config(config_of()))
    assert decoder_of(run) is None
    write_json(run.environment, {"decoder": "gpu", "continued": [{"step": 3, "decoder": "both"}]})
    assert decoder_of(run) == "both"


def test_another_decoder_is_told():
    before = {"decoder": "gpu"}
    assert "by cpu now, and by gpu before" in str(changed_decoder(before, "cpu"))
    assert changed_decoder(before, "gpu") is None and changed_decoder(before, None) is None
    assert changed_decoder({}, "gpu") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_there_are_no_engines_without_a_gpu():
    assert count_jpeg_engines(GPU) == 0


@needs_gpu()
def test_a_data_centre_gpu_has_engines():
    engines = count_jpeg_engines(torch.device("cuda", torch.cuda.current_device()))
    if torch.cuda.get_device_capability() in ((8, 0), (9, 0)):  # A100, A30, H100, H200
        assert engines > 0
    assert engines < 64
