"""The recipes that are shipped load, are listed, and are what they say."""

from pathlib import Path

import pytest

from pipeline.config import (
    PlainAugment,
    SgdConfig,
    StepSchedule,
    check_compiles,
    dump_config,
    load_config,
)
from tests.python import ROOT
from tests.tiny import RECIPE

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", [*RECIPES, RECIPE], ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(dump_config(load_config(path)))
    assert load_config(path) == load_config(tmp_path / "recipe.yaml")


def test_recipes_are_shipped():
    assert {"quickstart", "cifar10_resnet18"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_names_its_command(path: Path):
    assert (
        f"./launch.sh{'' if path.stem == 'quickstart' else f' {path.relative_to(ROOT)}'}\n"
        in path.read_text()
    )


def test_the_recipes_of_the_paper_differ_in_the_network_alone():
    """He et al. 2015, arXiv:1512.03385, section 4.2; the weight decay is that of wide ResNets."""
    names = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "plain20", "plain56")
    recipes = {name: load_config(ROOT / f"configs/cifar10_{name}.yaml") for name in names}
    first = recipes["resnet20"]
    assert (first.duration, first.data.batch_size, first.model.shortcut) == ("160ep", 128, "A")
    assert first.schedule == StepSchedule(warmup="0ep", milestones=("50%", "75%"), gamma=0.1)
    assert first.optimizer == SgdConfig(lr=0.1, momentum=0.9, nesterov=False, weight_decay=5e-4)
    assert first.augment == PlainAugment(crop_padding=4, flip=True)
    for name, config in recipes.items():
        assert config.model.name == name
        if name == "resnet110":  # the paper starts with a tenth of the rate, for about 400 steps
            warm_up = {"warmup": "400st", "start_fraction": 0.1}
            assert config.schedule == first.schedule.model_copy(update=warm_up)
            config = config.model_copy(update={"schedule": first.schedule})
        assert config.model_copy(update={"model": first.model}) == first


def test_the_recipe_of_twenty_epochs_is_what_it_says():
    config = load_config(ROOT / "configs/cifar10_resnet18.yaml")
    assert (config.model.name, config.duration, config.data.batch_size) == ("resnet18", "20ep", 512)
    assert config.augment == PlainAugment(crop_padding=4, flip=True, cutout=16)
    assert (config.schedule.name, config.loss.label_smoothing, config.precision.mode) == (
        "one_cycle",
        0.1,
        "fp16",
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_compiled_for_a_gpu_beforehand(path: Path) -> None:
    """With `compile.mode=graph` too: it compiles kernels."""
    check_compiles(load_config(path).compile, "cuda")
