"""Share between the tests of launch.sh: a checkout of stand-ins."""

from pathlib import Path

import pytest

from tests.integration.checkout import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")
