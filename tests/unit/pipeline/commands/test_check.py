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
