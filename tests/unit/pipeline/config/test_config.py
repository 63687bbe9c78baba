"""Recipes: reading, precedence, messages. Effects of the keys: test_config_keys.py; kinds: test_kinds.py."""

import contextlib
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import (
    Config,
    SgdConfig,
    StepSchedule,
    config_hash,
    dump_config,
    exists,
    leaf_fields,
    load_config,
)
from pipeline.errors import UserError
from tests.python import run_python
from tests.tiny import RECIPE


def read(text: str) -> Config:
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # messages name `recipe.yaml` alone
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        return load_config("recipe.yaml")


def message(text: str, *overrides: str, folder: Path | None = None) -> str:
    """What the user is told about this recipe."""
    path = (folder or Path()) / "recipe.yaml"
    if folder is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path, overrides) if folder is not None else read(text)
    return str(caught.value)


def test_command_line_over_recipe_over_defaults(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optimizer:\n  lr: 0.3\n  momentum: 0.8\n")
    config = load_config(recipe, ["optimizer.lr=0.7", "loss.label_smoothing=0.2"])
    assert config.optimizer == SgdConfig(lr=0.7, momentum=0.8, nesterov=True)
    assert (
        config.loss.label_smoothing,
        load_config(recipe).loss.label_smoothing,
        Config().loss.label_smoothing,
    ) == (0.2, 0, 0)
    assert config.augment == Config().augment


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "+3e-4", "0.3e-3", ".0003", "3.e-4"])
def test_numbers_with_an_exponent_are_floats(text: str):
    assert (
        read(f"optimizer:\n  lr: {text}\n").optimizer.lr
        == load_config(overrides=[f"optimizer.lr={text}"]).optimizer.lr
        == 3e-4
    )


def test_a_whole_number_stands_for_a_float_and_no_other_type_for_another():
    assert read("optimizer:\n  lr: 1\n").optimizer.lr == 1.0
    for bad in (
        "model:\n  zero_init_residual: 1",
        "optimizer:\n  lr: '0.1'",
        "seed: 1.0",
        "seed: true",
        "log:\n  dir: 5",
    ):
        assert "got " in message(bad)


def test_words_of_yaml_1_1_are_words():
    assert read("log:\n  name: off\n").log.name == "off"
    assert read("log:\n  dir: 1:30\n").log.dir == "1:30"
    assert read("seed: 010\n").seed == 10  # YAML 1.1: octal
    assert "'yes' is none of true, false" in message("augment:\n  flip: yes\n")


def test_lists_and_null_and_fractions_on_the_command_line():
    overrides = [
        "schedule.name=step",
        "schedule.milestones=[80ep, 120ep]",
        "optimizer.clip_norm=null",
        "data.holdout=0.1",
    ]
    config = load_config(overrides=overrides)
    assert config.schedule == StepSchedule(milestones=("80ep", "120ep"))
    assert config.optimizer.clip_norm is None
    assert config.data.holdout == 0.1
    assert type(load_config(overrides=["data.holdout=500"]).data.holdout) is int


@pytest.mark.parametrize(
    "value",
    ["it's", "a=b", "two words", "ünïcode", "~/data", "C#", "*", "a, b", "/mnt/x: y", "[1", "- x", "50%"],
)
def test_an_override_takes_any_text_for_a_text_key(value: str):
    assert load_config(overrides=[f"data.root={value}"]).data.root == value


# --- the object ---


def test_a_config_is_frozen():
    with pytest.raises(ValidationError):
        Config().seed = 1
    with pytest.raises(ValidationError):
        Config().optimizer.lr = 1.0


def test_dump_writes_every_key_of_the_own_kinds_and_no_other():
    text = dump_config(Config())
    for key, _ in leaf_fields():
        written = re.search(rf"^ *{key.rpartition('.')[2]}:", text, re.MULTILINE)
        assert (written is not None) is exists(Config(), key), key


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=20), st.floats(1e-12, 1e4, exclude_min=True), st.integers(0, 2**63 - 1))
def test_dump_and_load_give_an_equal_config(text: str, lr: float, seed: int):
    try:
        config = Config.model_validate({"seed": seed, "data": {"root": text}, "optimizer": {"lr": lr}})
    except ValidationError:  # a lone surrogate, say
        return
    assert read(dump_config(config)) == config


@pytest.mark.parametrize(
    "word",
    [
        "3e-4",
        "1e5",
        "0123",
        "yes",
        "null",
        "~",
        "2026-11-22",
        "1:30",
        "0x1f",
        "1_000",
        "true",
        ".inf",
        "a: b",
        "a\x85b",
        "a\u2028",
    ],
)
def test_a_word_that_looks_like_something_else_stays_a_word(word: str):
    config = Config.model_validate({"data": {"root": word}})
    assert read(dump_config(config)) == config


def test_hash_is_of_what_is_computed():
    assert config_hash(read("seed: 1")) != config_hash(Config())
    for same in (
        "resume: auto",
        "log:\n  dir: elsewhere",
        "log:\n  explain: false",
        "runtime:\n  hang_timeout_s: 60.0",
    ):
        assert config_hash(read(same)) == config_hash(Config())
    assert re.fullmatch(r"[0-9a-f]{12}", config_hash(Config()))
    folder = "data:\n  dataset: folder\n"
    assert config_hash(read(f"{folder}  test_folder: val")) != config_hash(read(folder))


# --- messages ---


@pytest.mark.parametrize(
    ("text", "line", "key", "near"),
    [
        (
            "seed: 1\n\noptimizer:\n  lr: 0.1\n  momentun: 0.9\n",
            5,
            "optimizer.momentun",
            "optimizer.momentum",
        ),
        ("optimiser:\n  lr: 0.1\n", 1, "optimiser", "optimizer"),
        ("sed: 1\n", 1, "sed", "seed"),
        ("lr: 0.1\n", 1, "lr", "optimizer.lr"),
        ("data:\n  label_smoothing: 0.1\n", 2, "data.label_smoothing", "loss.label_smoothing"),
    ],
)
def test_unknown_key_has_file_line_and_suggestion(tmp_path: Path, text: str, line: int, key: str, near: str):
    assert (
        message(text, folder=tmp_path)
        == f"{tmp_path}/recipe.yaml:{line}: unknown key {key}; did you mean {near}?"
    )


def test_unknown_key_that_is_like_no_other():
    assert (
        message("xyzzy: 1\n")
        == "recipe.yaml:1: unknown key xyzzy; `python -m pipeline config-reference` lists the keys"
    )


def test_unknown_key_on_the_command_line(tmp_path: Path):
    assert (
        message("seed: 1\n", "model.nam=resnet20", folder=tmp_path)
        == "command line: unknown key model.nam; did you mean model.name?"
    )


def test_duplicate_key():
    expected = "recipe.yaml:4: duplicate key optimizer.lr, first at recipe.yaml:2; keep one of the two"
    assert message("optimizer:\n  lr: 0.1\n  momentum: 0.9\n  lr: 0.2\n") == expected
    assert "recipe.yaml:3: duplicate key data, first at recipe.yaml:1" in message(
        "data:\n  loader: dali\ndata:\n  root: x\n"
    )
    with pytest.raises(UserError, match=r"command line: duplicate key seed"):
        load_config(overrides=["seed=1", "seed=2"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "data:\n  batch_size: many\n",
            ["recipe.yaml:2: data.batch_size: ", "got 'many'", "Images per optimizer step"],
        ),
        (
            "data:\n  batch_size: 0\n",
            ["recipe.yaml:2: data.batch_size: ", "greater than or equal to 1", "got 0"],
        ),
        (
            "model:\n  name: resnet21\n",
            ["recipe.yaml:2: model.name: ", "'resnet21'; did you mean resnet", "torchvision/NAME"],
        ),
        ("model:\n  name: torchvision/\n", ["recipe.yaml:2: model.name: ", "'torchvision/'"]),
        ("duration: 20 epochs\n", ["recipe.yaml:1: duration: ", "write epochs as 20ep"]),
        ("duration: 50%\n", ["recipe.yaml:1: duration: ", "20ep or 500st"]),
        ("log:\n  log_every: 0st\n", ["recipe.yaml:2: log.log_every: ", "at least 1st"]),
        ("data:\n  resident_limit: 8GB\n", ["recipe.yaml:2: data.resident_limit: ", "8GiB"]),
        ("optimizer:\n  lr: .nan\n", ["recipe.yaml:2: optimizer.lr: ", "finite"]),
        ("optimizer:\n  lr:\n", ["recipe.yaml:2: optimizer.lr: ", "got None"]),
        ("optimizer: 0.1\n", ["recipe.yaml:1: optimizer: ", "got 0.1"]),
        (
            "schedule:\n  name: step\n  milestones: [1ep, soon]\n",
            ["recipe.yaml:3: schedule.milestones: ", "'soon' is not a duration"],
        ),
        ("duration: 20\n", ["recipe.yaml:1: duration: ", "'20' is not a duration: write epochs as 20ep"]),
        (
            "schedule:\n  name: step\n  milestones: [80]\n",
            ["recipe.yaml:3: schedule.milestones: ", "'80' is not a duration"],
        ),
        (
            "schedule:\n  warmup: 0.1\n",
            ["recipe.yaml:2: schedule.warmup: ", "'0.1' is not a duration", "a share of the run as 10%"],
        ),
        ("data:\n  resident_limit: 8\n", ["recipe.yaml:2: data.resident_limit: ", "'8' is not a size"]),
    ],
)
def test_a_wrong_value_names_key_line_and_meaning(text: str, parts: list[str]):
    told = message(text)
    assert "\n" not in told
    for part in parts:
        assert part in told


def test_every_mistake_is_told_at_once():
    told = message("seed: -1\ndata:\n  batch_size: 0\nfoo: 1\n").splitlines()
    assert [line.split(": ")[0] for line in told] == ["recipe.yaml:1", "recipe.yaml:3", "recipe.yaml:4"]


def test_a_union_is_told_once():
    assert message("data:\n  holdout: some\n").count("data.holdout") == 1


@pytest.mark.parametrize(
    ("text", "origin", "keys", "remedy"),
    [
        ("data:\n  mean: [0.5, 0.5, 0.5]\n", 2, ["data.mean", "data.std"], "give both or neither"),
        ("data:\n  mean: [0.5, 0.5]\n  std: [0.2]\n", 2, ["data.mean", "data.std"], "one number per channel"),
        ("data:\n  mean: [0.5]\n  std: [0]\n", 3, ["data.std"], "above 0"),
        ("data:\n  holdout: 100.0\n", 2, ["data.holdout"], "write 100"),
        ("augment:\n  cutout: 33\n", 2, ["augment.cutout"], "smaller box"),
        (
            "model:\n  name: speednet94\ndata:\n  dataset: folder\n  image_size: 8\n",
            5,
            ["data.image_size", "speednet94"],
            "9 pixels or more",
        ),
        (
            "model:\n  name: speednet96\ndata:\n  dataset: folder\n  eval_image_size: 8\n",
            5,
            ["data.eval_image_size", "speednet96"],
            "9 pixels or more",
        ),
        ("schedule:\n  name: step\n", 1, ["schedule.milestones", "schedule.name"], "[80ep, 120ep]"),
        (
            "optimizer:\n  momentum: 0\n",
            1,
            ["optimizer.nesterov", "optimizer.momentum"],
            "optimizer.nesterov=false",
        ),
        (
            "runtime:\n  device: cpu\ncompile:\n  mode: reduce-overhead\n",
            4,
            ["compile.mode", "runtime.device"],
            "compile.mode=default",
        ),
        (
            "compile:\n  mode: max-autotune\n  backend: aot_eager\n",
            2,
            ["compile.mode", "compile.backend"],
            "inductor",
        ),
        ("model:\n  name: resnet50\n  groups: 48\n", 3, ["model.groups"], "power of 2"),
        (
            "data:\n  sampler: balanced\nloss:\n  class_weights: balanced\n",
            4,
            ["loss.class_weights", "data.sampler"],
            "keep one of them",
        ),
        (
            "data:\n  sampler: balanced\naugment:\n  flip: alternating\n",
            4,
            ["augment.flip", "data.sampler"],
            "augment.flip=true",
        ),
        (
            "data:\n  dataset: synthetic\n  num_samples: 8\n",
            3,
            ["data.num_samples", "data.batch_size"],
            "data.batch_size=8",
        ),
    ],
)
def test_keys_that_contradict_each_other(text: str, origin: int, keys: list[str], remedy: str):
    told = message(text)
    assert told.startswith(f"recipe.yaml:{origin}: {keys[0]}")
    for part in (*keys, remedy):
        assert part in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n", "recipe.yaml:1: expected `key: value` lines"),
        ("just words\n", "recipe.yaml:1: expected `key: value` lines"),
        ("a: [1\nb: 2\n", "recipe.yaml:2: not valid YAML"),
        ("a: b: c\n", "recipe.yaml:1: not valid YAML"),
        ("data:\n\tloader: dali\n", "recipe.yaml:2: not valid YAML"),
        ("seed: " + 5000 * "1", "recipe.yaml: not valid YAML"),
        ("? [a]\n: 1\n", "recipe.yaml:1: a key must be a word"),
        ("data: &d\n  x: *d\n", "recipe.yaml:1: data.x contains itself"),
        ("x: !!python/object/apply:os.system [exit]\n", "recipe.yaml:1: not valid YAML"),
        ("a: *missing\n", "recipe.yaml:1: not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", "recipe.yaml:2: not valid YAML"),
    ],
)
def test_what_is_no_recipe(text: str, told: str):
    assert message(text).startswith(told)


def test_files_that_cannot_be_read(tmp_path: Path):
    for name, content, told in (
        ("binary.yaml", b"\xff\xfe\x00", "cannot be read"),
        ("long.yaml", b"#" * (2**20 + 1), "larger than"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: {told}"):
            load_config(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)
    with pytest.raises(
        UserError, match=r"nowhere.yaml: no such recipe. Shipped: .*configs/cifar10_resnet18.yaml"
    ):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    "override", ["seed", "=1", "a..b=1", "data.=1", ".seed=1", "seed 1", "--seed=1", "data/root=x"]
)
def test_what_is_no_override(override: str):
    with pytest.raises(UserError, match=re.escape(f"{override!r}: expected KEY=VALUE")):
        load_config(overrides=[override])


def test_an_override_hides_no_mistake_of_the_recipe(tmp_path: Path):
    assert message("optimizer: 0.1\n", "optimizer.momentum=0.8", folder=tmp_path).startswith(
        f"{tmp_path}/recipe.yaml:1: optimizer: "
    )


def test_config_imports_neither_torch_nor_numpy():
    code = f"""
import sys
from pipeline.config import load_config, reference_table
load_config({str(RECIPE)!r}), reference_table()
heavy = {{'torch', 'numpy', 'accelerate', 'nvidia'}}
print(sorted({{name.partition('.')[0] for name in sys.modules}} & heavy))
"""
    done = run_python("-W", "error", "-c", code)
    assert done.stdout.strip() == "[]"
