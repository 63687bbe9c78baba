"""torch's switches are those of the config, whatever they were before."""

import pytest
import torch

from pipeline.training.build import set_backends
from tests.tiny import tiny_config


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
def test_determinism(before: tuple[bool, bool], wanted: bool) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    set_backends(tiny_config(f"runtime.deterministic={str(wanted).lower()}"))
    assert torch.are_deterministic_algorithms_enabled() == wanted
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
