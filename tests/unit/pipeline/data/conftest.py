"""Share between the tests of data sets: a small one in class folders."""

from pathlib import Path

import pytest

from tests.class_folders import make_class_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "root")
