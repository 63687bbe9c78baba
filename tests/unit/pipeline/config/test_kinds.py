"""Sections whose keys differ by kind, keys without effect, and the config of an older run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import (
    Config,
    all_values,
    config_hash,
    dump_config,
    exists,
    hash_of_run,
    keys_without_effect,
    leaf_fields,
    load_config,
    reference_table,
    without_other_kinds,
)
from pipeline.config.keys import all_keys, sections_of_kinds
from pipeline.errors import UserError
from tests.python import ROOT

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
OLDER_RUN = Path(__file__).with_name("config_of_older_run.yaml")
# A value of each kind, and the keys that the kind needs.
KINDS = [
    *(("optimizer.name", kind, ()) for kind in ("sgd", "adamw", "muon")),
    *(("schedule.name", kind, ()) for kind in ("linear", "cosine", "one_cycle")),
    ("schedule.name", "step", ("schedule.milestones=[50%]",)),
    *(("precision.mode", kind, ()) for kind in ("fp16", "bf16", "fp32")),
    *(("augment.mix", kind, ()) for kind in ("none", "mixup", "cutmix", "ricap", "mixup_or_cutmix")),
    *(
        ("data.dataset", kind, ())
        for kind in ("cifar10", "cifar100", "digits", "folder", "shards", "synthetic")
    ),
]
# A recipe for each section: keys of one kind, another kind, and the keys that it does not have.
RECIPE_OF_SGD = "optimizer:\n  name: sgd\n  lr: 0.2\n  momentum: 0.8\n  nesterov: false\n"
CHANGES = [
    (RECIPE_OF_SGD, "optimizer.name=adamw", 4, ["optimizer.momentum", "optimizer.nesterov"]),
    ("optimizer:\n  momentum: 0.8\n", "optimizer.name=adamw", 2, ["optimizer.momentum"]),
    ("schedule:\n  final_fraction: 0.1\n", "schedule.name=step", 2, ["schedule.final_fraction"]),
    ("precision:\n  init_scale: 8.0\n", "precision.mode=bf16", 2, ["precision.init_scale"]),
    ("augment:\n  mix: mixup\n  mix_alpha: 0.2\n", "augment.mix=none", 3, ["augment.mix_alpha"]),
    (
        "data:\n  dataset: folder\n  image_size: 48\n  decoder: cpu\n",
        "data.dataset=cifar10",
        3,
        ["data.image_size", "data.decoder"],
    ),
]
NO_EFFECT = [
    ("augment:\n  cutout_mode: inside\n", 2, ["augment.cutout_mode"], "set augment.cutout"),
    (
        "augment:\n  randaugment_magnitude: 5\n",
        2,
        ["augment.randaugment_magnitude"],
        "set augment.randaugment",
    ),
    (
        "schedule:\n  warmup: 0ep\n  start_fraction: 0.5\n",
        3,
        ["schedule.start_fraction"],
        "set schedule.warmup",
    ),
    ("evaluation:\n  views_share: 0.5\n", 2, ["evaluation.views_share"], "set evaluation.views"),
    (
        "data:\n  dataset: folder\n  decoder: cpu\n  hw_decoder_load: 0.5\n",
        4,
        ["data.hw_decoder_load"],
        "set data.decoder=gpu",
    ),
    (
        "data:\n  dataset: folder\n  train_list: a\n  test_list: b\n  test_folder: val\n",
        5,
        ["data.test_folder"],
        "data.train_list and data.test_list name the files",
    ),
    (
        "data:\n  dataset: digits\naugment:\n  progressive: [[0st, 48]]\n",
        4,
        ["augment.progressive"],
        "set data.dataset=folder",
    ),
    (
        "model:\n  name: plain20\n  shortcut: A\n  preactivation: true\n",
        3,
        ["model.shortcut", "model.preactivation"],
        "model.name=resnet20",
    ),
    (
        "model:\n  name: davidnet\n  stem: cifar\n  zero_init_residual: false\n",
        3,
        ["model.stem", "model.zero_init_residual"],
        "remove the keys",
    ),
    (
        "model:\n  name: timm/x\n  zero_init_residual: false\n",
        3,
        ["model.zero_init_residual"],
        "remove the key",
    ),
    ("model:\n  name: torchvision/resnet18\n  width: 2\n", 3, ["model.width"], "remove the key"),
    ("model:\n  name: timm/resnet18\n  fused_norm: true\n", 3, ["model.fused_norm"], "remove the key"),
    ("model:\n  name: resnet34\n  groups: 2\n", 3, ["model.groups"], "model.name=resnet50"),
    ("model:\n  stem: imagenet\n  fused_stem: true\n", 3, ["model.fused_stem"], "model.fused_norm=true"),
    (
        "model:\n  stem: imagenet\n  fused_norm: true\n  fused_stem: true\n  preactivation: true\n",
        4,
        ["model.fused_stem"],
        "has no norm after it here; set model.stem=cifar",
    ),
    (
        "model:\n  name: wrn16\n  stem: imagenet\n  fused_norm: true\n  fused_stem: true\n",
        5,
        ["model.fused_stem"],
        "has no norm after it here; set model.stem=cifar",
    ),
    (
        "model:\n  name: plain20\n  stem: imagenet\n  preactivation: true\n  fused_norm: true\n"
        "  fused_stem: true\n",
        4,
        ["model.preactivation"],
        "model.name=resnet20",
    ),
]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Load a recipe by its text, or without one; messages name `recipe.yaml` alone."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str, of_run: bool = False) -> Config:
        Path("recipe.yaml").write_text(text)
        return load_config("recipe.yaml" if text else None, overrides, of_run=of_run)

    return load


# --- a change of the kind on the command line ---


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("key", "kind", "needed"), KINDS, ids=lambda value: str(value))
def test_one_name_on_the_command_line_is_enough(recipe: Path, key: str, kind: str, needed: Sequence[str]):
    if load_config(recipe).augment.progressive and kind in ("cutmix", "ricap", "mixup_or_cutmix"):
        needed = ("augment.progressive=[]",)  # a contradiction: a run would break
    config = load_config(recipe, [f"{key}={kind}", *needed])
    section, _, name = key.partition(".")
    assert getattr(getattr(config, section), name) == kind
    for warning in config.warnings:
        assert warning.startswith(f"{recipe}:") and ("passed over" in warning or "no effect" in warning)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "name", ["resnet18", "plain20", "davidnet", "wrn16", "torchvision/resnet18", "timm/x"]
)
def test_one_network_on_the_command_line_is_enough(recipe: Path, name: str):
    assert load_config(recipe, [f"model.name={name}"]).model.name == name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_has_no_warnings(recipe: Path):
    assert load_config(recipe).warnings == ()


@pytest.mark.parametrize(("text", "override", "line", "keys"), CHANGES)
def test_keys_of_the_former_kind_are_passed_over_with_one_warning(
    load: Any, text: str, override: str, line: int, keys: list[str]
):
    needed = ("schedule.milestones=[1ep]",) if override == "schedule.name=step" else ()
    config = load(text, override, *needed)
    (warning,) = config.warnings
    assert warning.startswith(f"recipe.yaml:{line}: {keys[0]}") and override in warning
    assert all(key in warning for key in keys)
    kept = "".join(
        f"{row}\n" for row in text.splitlines() if not any(f" {k.split('.')[1]}:" in row for k in keys)
    )
    assert config == load(kept, override, *needed)


@pytest.mark.parametrize(("text", "override", "line", "keys"), CHANGES)
def test_the_same_key_on_the_command_line_is_an_error(
    load: Any, text: str, override: str, line: int, keys: list[str]
):
    with pytest.raises(UserError) as caught:
        load("", override, f"{keys[0]}=1")
    message = str(caught.value).splitlines()[0]
    kind_key, _, kind = override.partition("=")
    assert message.startswith(f"command line: {keys[0]} is a key of {kind_key}=")
    assert f"not of {kind}" in message and f"remove it, or change {kind_key}" in message


def test_the_same_kind_on_the_command_line_hides_no_mistake_of_the_recipe(load: Any):
    with pytest.raises(
        UserError, match=r"recipe.yaml:2: optimizer.betas is a key of optimizer.name=adamw, not of sgd"
    ):
        load("optimizer:\n  betas: [0.8, 0.9]\n", "optimizer.name=sgd")


def test_a_kind_that_does_not_exist_is_told_as_a_wrong_value(load: Any):
    for bad, shown in (("adam", "'adam'"), ("3", "3"), ("[1]", "[1]"), ("null", "None")):
        with pytest.raises(UserError) as caught:
            load(RECIPE_OF_SGD, f"optimizer.name={bad}")
        message = str(caught.value)
        assert message.startswith("command line: optimizer.name: ") and f"got {shown} " in message
        assert "'sgd', 'adamw' or 'muon'" in message and "\n" not in message


# --- a recipe that names its kind ---


@pytest.mark.parametrize(
    ("text", "line", "key", "owner", "kind"),
    [
        ("optimizer:\n  name: adamw\n  nesterov: false\n", 3, "nesterov", "sgd or muon", "adamw"),
        ("optimizer:\n  name: muon\n  betas: [0.8, 0.9]\n", 3, "betas", "adamw", "muon"),
        ("optimizer:\n  sgd_lr_ratio: 2.0\n", 2, "sgd_lr_ratio", "muon", "sgd, the default"),
        ("schedule:\n  gamma: 0.2\n", 2, "gamma", "step", "linear, the default"),
        ("schedule:\n  milestones: [1ep]\n", 2, "milestones", "step", "linear, the default"),
        (
            "schedule:\n  name: step\n  milestones: [1ep]\n  final_fraction: 0.1\n",
            4,
            "final_fraction",
            "linear, cosine or one_cycle",
            "step",
        ),
        ("precision:\n  mode: bf16\n  growth_interval: 5\n", 3, "growth_interval", "fp16", "bf16"),
        (
            "augment:\n  mix_alpha: 0.5\n",
            2,
            "mix_alpha",
            "mixup, cutmix, ricap or mixup_or_cutmix",
            "none, the default",
        ),
        (
            "data:\n  image_size: 48\n",
            2,
            "image_size",
            "digits, folder, shards or synthetic",
            "cifar10, the default",
        ),
        ("data:\n  on_bad_image: skip\n", 2, "on_bad_image", "folder or shards", "cifar10, the default"),
        ("data:\n  dataset: synthetic\n  eval_crop: 1.0\n", 3, "eval_crop", "folder or shards", "synthetic"),
    ],
)
def test_a_key_of_another_kind_says_whose_it_is(
    load: Any, text: str, line: int, key: str, owner: str, kind: str
):
    section = text.partition(":")[0]
    kind_key = f"{section}.{sections_of_kinds()[section].key}"
    with pytest.raises(UserError) as caught:
        load(text)
    remedy = f"remove it, or change {kind_key}"
    expected = f"{section}.{key} is a key of {kind_key}={owner}, not of {kind}; {remedy}"
    assert str(caught.value) == f"recipe.yaml:{line}: {expected}"


# --- keys without effect ---


@pytest.mark.parametrize(("text", "line", "keys", "remedy"), NO_EFFECT)
def test_keys_without_effect_are_one_warning(load: Any, text: str, line: int, keys: list[str], remedy: str):
    config = load(text)
    (warning,) = config.warnings
    assert (
        warning.startswith(f"recipe.yaml:{line}: {keys[0]}") and remedy in warning and "no effect" in warning
    )
    assert set(keys) <= keys_without_effect(config)


def test_a_warning_makes_no_other_config(load: Any):
    with_warning = load("", "augment.cutout_mode=clipped", "optimizer.name=sgd")
    warned = load("optimizer:\n  name: adamw\n  betas: [0.8, 0.9]\n", "optimizer.name=sgd")
    assert warned.warnings and not with_warning.warnings
    assert warned == with_warning and hash(warned) == hash(with_warning)


def test_keys_of_other_kinds_have_no_effect():
    idle = keys_without_effect(Config())
    assert {"optimizer.betas", "data.num_classes", "schedule.gamma", "augment.mix_alpha"} <= idle
    assert not idle & {"optimizer.momentum", "precision.init_scale", "schedule.final_fraction", "data.root"}


def test_overrides_lose_the_keys_of_another_kind():
    overrides = ["optimizer.momentum=0.8", "data.decoder=cpu", "seed=1", "no.such.key=2"]
    assert without_other_kinds(overrides, ["data.dataset=synthetic", "seed=2"]) == [
        overrides[0],
        *overrides[2:],
    ]
    assert without_other_kinds(overrides, ["optimizer.name=muon"]) == overrides


# --- the config of a run ---


def test_the_config_of_an_older_run_loads_with_its_hash():
    """That version wrote out the keys of all kinds, and counted them in the hash."""
    config = load_config(OLDER_RUN, of_run=True)
    assert config_hash(config) == hash_of_run(OLDER_RUN) == "30702b9ded7a" and config.warnings == ()
    keys = [
        "schedule.name=cosine",
        "schedule.final_fraction=0.01",
        "precision.mode=bf16",
        "compile.mode=auto",
    ]
    same = load_config(
        ROOT / "configs/cifar10_resnet18.yaml", [*keys, "augment.mix=mixup", "augment.mix_alpha=0.2"]
    )
    assert config == same == load_config(OLDER_RUN)  # as a recipe, too: it holds every key of every kind


def test_the_config_of_a_run_of_a_still_older_version_is_marked(tmp_path: Path):
    older = tmp_path / "config.yaml"
    older.write_text(re.sub("  (growth_interval|clip_norm): .*\n", "", OLDER_RUN.read_text()))  # came later
    assert load_config(older, of_run=True) == load_config(OLDER_RUN)
    with pytest.raises(
        UserError, match=r"config.yaml:\d+: precision.init_scale is a key of precision.mode=fp16"
    ):
        load_config(older)


def test_values_of_other_kinds_counted_in_the_hash_of_an_older_run(tmp_path: Path):
    older = tmp_path / "config.yaml"
    older.write_text(OLDER_RUN.read_text().replace("num_classes: 10", "num_classes: 4"))
    assert hash_of_run(older) == "7c0276b159c2"
    assert load_config(older, of_run=True) == load_config(OLDER_RUN, of_run=True)


def test_a_key_of_the_command_line_over_the_config_of_a_run_is_not_passed_over():
    with pytest.raises(
        UserError, match=r"command line: optimizer.betas is a key of optimizer.name=adamw, not of muon"
    ):
        load_config(OLDER_RUN, ["optimizer.betas=[0.8, 0.9]"], of_run=True)
    assert load_config(OLDER_RUN, ["optimizer.name=sgd"], of_run=True).warnings == ()


@pytest.mark.parametrize(("key", "kind", "needed"), KINDS, ids=lambda value: str(value))
def test_the_config_of_a_run_holds_the_keys_of_its_own_kinds(
    load: Any, key: str, kind: str, needed: Sequence[str]
):
    config = load_config(overrides=[f"{key}={kind}", *needed])
    assert load(dump_config(config)) == config and hash_of_run(Path("recipe.yaml")) == config_hash(config)
    assert list(all_values(config)) == [key for key, _ in leaf_fields()]


# --- the keys ---


def test_every_kind_has_a_row_here():
    named = {key: [kind for name, kind, _ in KINDS if name == key] for key, _, _ in KINDS}
    for section, mark in sections_of_kinds().items():
        key = f"{section}.{mark.key}"
        choices = {kind for other in all_keys().values() if other.kind_key == key for kind in other.kinds}
        assert choices <= set(named[key]) and mark.default in named[key]


def test_a_key_exists_for_its_kinds_alone():
    muon = load_config(overrides=["optimizer.name=muon"])
    assert exists(muon, "optimizer.sgd_lr_ratio") and exists(muon, "optimizer.lr") and exists(muon, "seed")
    assert not exists(muon, "optimizer.betas")


def test_the_reference_of_a_word():
    def keys(word: str) -> list[str]:
        return [line.split("`")[1] for line in reference_table(word).splitlines()[2:]]

    assert keys("optimizer.lr") == ["optimizer.lr", "optimizer.sgd_lr_ratio"]  # whose meaning names it
    assert keys("nesterov") == ["optimizer.nesterov"]
    assert keys("CUTOUT") == ["augment.cutout", "augment.cutout_mode", "augment.brightness"]
    assert "(`optimizer.name=sgd or muon`)" in reference_table("momentum")
    with pytest.raises(UserError, match=r"'optimizer.momentun'; did you mean optimizer.momentum\?"):
        reference_table("optimizer.momentun")
