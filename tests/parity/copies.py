"""Copies the tensors of a case."""

from typing import Any, NamedTuple, TypeVar

import torch

Case = TypeVar("Case", bound=NamedTuple)


def copy_case(case: Case, dtype: torch.dtype | None = None) -> Case:
    """Return a copy, in another dtype if one is given, whose running statistics can be changed."""
    copies: dict[str, Any] = {
        name: each.to(dtype or each.dtype, copy=True)
        for name, each in case._asdict().items()
        if isinstance(each, torch.Tensor)
    }
    return case._replace(**copies)
