"""Checks that a value on the command line is one value, whole, and that no text makes a traceback."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import config_hash, dump_config, load_config
from pipeline.config.yaml_reader import dump, parse
from pipeline.errors import UserError

PATH_KEYS = ("data.root", "data.cache_dir", "model.weights", "log.dir", "resume")
FOLDER_KEYS = ("data.train_list", "data.test_list", "data.class_names")


def override(key: str, text: str) -> Any:
    config = load_config(overrides=[f"{key}={text}"])
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section), name) if section else getattr(config, name)


TEXTS = (
    *("D/set #2", "#x.pth", "&x", "*x", "!!str 5", "|", ">", "D: x", "a: [b]", "- a", "'a' #b", "[a, #b]"),
    *("D/set ", " D", "a\rb", "a\tb", "a\u2028b", "'a\nb'", "a\x01b", "\x1b[31m", "caf\udce9", "a\ufeffb"),
)


@pytest.mark.parametrize(
    ("key", "path"), [*((key, "D/set #2") for key in PATH_KEYS), *(("data.root", text) for text in TEXTS)]
)
def test_the_text_of_an_override_is_the_value_whole(key: str, path: str, tmp_path: Path):
    config, recipe = load_config(overrides=[f"{key}={path}"]), tmp_path / "config.yaml"
    assert override(key, path) == path
    recipe.write_text(dump_config(config), encoding="utf-8")
    assert load_config(recipe, of_run=True) == config
    assert config_hash(load_config(recipe, of_run=True)) == config_hash(config)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.lr", "3e-4", 3e-4),
        ("optimizer.lr", " 0.5 ", 0.5),
        ("data.cache_dir", "null", None),
        ("data.cache_dir", "", None),
        ("augment.flip", "false", False),
        ("augment.crop_scale", " [0.25, 1]", (0.25, 1.0)),
        ("data.root", '"2024"', "2024"),
        ("data.root", "'it''s'", "it's"),
        ("data.root", r'"a\x01b"', "a\x01b"),
    ],
)
def test_numbers_words_lists_and_quoted_texts_are_read_as_in_a_recipe(key: str, text: str, value: Any):
    assert override(key, text) == value


@pytest.mark.parametrize(
    "override", ["model.freeze=[*.bias]", "optimizer.groups=[{match: *.bias, lr_ratio: 2}]"]
)
def test_a_pattern_that_yaml_cannot_read(override: str):
    with pytest.raises(UserError, match=r"not valid YAML; put texts .* in double quotes") as error:
        load_config(overrides=[override])
    assert override.partition("=")[0] in str(error.value) and "\n" not in str(error.value)
    assert load_config(overrides=[override.replace("*.bias", '"*.bias"')])


@pytest.mark.parametrize("key", [*PATH_KEYS, *FOLDER_KEYS])
@pytest.mark.parametrize("text", ["''", "2024", "[a]", "true"])
def test_a_path_is_a_text(key: str, text: str):
    overrides = ["data.dataset=folder"] if key in FOLDER_KEYS else []
    with pytest.raises(UserError, match=rf"^command line: {key}: .*(string|empty)"):
        load_config(overrides=[*overrides, f"{key}={text}"])


@pytest.mark.parametrize(
    "content", ["seed: 1\n".encode("utf-16-le"), "seed: 1\n".encode("utf-16"), b"seed: 1\x01\n", b"a: \xe9\n"]
)
def test_a_recipe_that_is_no_utf_8_text(content: bytes, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{recipe}: .*UTF-8") as raised:
        load_config(recipe)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable()


@pytest.mark.parametrize(
    "text", ["D #2", "#x", "a\x01b", "caf\udce9", " a ", "a\x85b", "a\u2028b", "\ufeffa"]
)
def test_any_text_is_written_so_that_it_is_read_again(text: str):
    assert parse(dump({"key": text}), "recipe").values == {"key": text}


def test_runs_need_a_folder_whose_name_is_utf_8():
    with pytest.raises(UserError, match=r"^command line: log\.dir: .*UTF-8.*another folder"):
        load_config(overrides=["log.dir=caf\udce9"])
