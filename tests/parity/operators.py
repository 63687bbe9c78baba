"""Check the registration of operators."""

from typing import Any

import torch


def assert_registered(operator: Any, arguments: tuple[Any, ...]) -> None:
    """Assert that an operator passes PyTorch's own checks.

    They check its schema, mutated arguments, shapes without data, autograd, and tracing with static
    and dynamic shapes.
    """
    results = torch.library.opcheck(operator, arguments)
    assert len(results) >= 4 and set(results.values()) == {"SUCCESS"}, results
