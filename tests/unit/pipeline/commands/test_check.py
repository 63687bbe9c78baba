"""Tests `python -m pipeline check`."""

import pytest

from pipeline.__main__ import main

QUICKSTART = "configs/quickstart.yaml"


@pytest.mark.parametrize("key", ["log.dir", "resume", "data.root", "data.class_names", "model.weights"])
def test_an_unknown_home_folder_is_told(key: str, capsys: pytest.CaptureFixture[str]):
    keys = ("data.dataset=folder",) if key.startswith("data.") else ()
    assert main(["check", QUICKSTART, *keys, f"{key}=~nosuchuser/x"]) == 2
    error = capsys.readouterr().err
    assert f"{key}: ~nosuchuser/x: the home folder ~nosuchuser/ is not known" in error


@pytest.mark.parametrize("command", [["check"], ["train", "--dry-run"]], ids=["check", "dry-run"])
@pytest.mark.parametrize(
    ("keys", "part"),
    [
        (("optimizer.groups=[{match: nix.*, lr_ratio: 2}]",), "optimizer.groups: 'nix.*' fits no trained"),
        (
            ("model.freeze=[head.*]", "optimizer.groups=[{match: head.*, lr_ratio: 2}]"),
            "optimizer.groups: 'head.*' fits no trained",
        ),
        (("model.freeze=[s*]", "optimizer.name=muon"), "optimizer.name: muon is for"),
    ],
    ids=["no such name", "frozen", "muon"],
)
def test_patterns_that_fit_no_trained_parameter(
    command: list[str], keys: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
):
    assert main([command[0], "tests/tiny.yaml", *keys, *command[1:]]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("error:") == 1


def test_an_average_that_the_run_never_updates(capsys: pytest.CaptureFixture[str]):
    for every, told in (("4ep", True), ("3ep", False), ("100%", False)):
        assert main(["check", "tests/tiny.yaml", "ema.decay=0.9", f"ema.every={every}"]) == 0
        assert ("ema.every: 4ep is longer than the run, 3ep" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("mix", "repeats", "fits"),
    [("mixup", 8, False), ("mixup", 4, True), ("ricap", 4, False), ("none", 8, True)],
)
def test_images_that_are_mixed_are_different_ones(
    mix: str, repeats: int, fits: bool, capsys: pytest.CaptureFixture[str]
):
    keys = (f"augment.mix={mix}", f"augment.repeats={repeats}", "data.batch_size=8", "data.eval_batch_size=8")
    assert main(["check", "tests/tiny.yaml", *keys]) == (0 if fits else 2)
    assert ("augment.repeats" in capsys.readouterr().err) != fits
