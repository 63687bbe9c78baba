"""Works around faults of certain torch versions."""

import importlib
from pathlib import Path

import torch
from torch.torch_version import TorchVersion


def name_operators_briefly() -> None:
    """Keep inductor from writing out the arguments of an operator that it meets for the first time.

    torch 2.11 does so for a line of its log, whether the log is on or not; 2.15 no longer does. An argument is written with all that it was
    made from, so every residual block doubles the text: the gradient of a ResNet-56's stem, the last operator met, has 27 blocks before it.
    """
    if TorchVersion(torch.__version__) < "2.15":
        exc = importlib.import_module("torch._inductor.exc")
        exc.OperatorIssue.operator_str = staticmethod(lambda target, args, kwargs: f"target: {target}")


def keep_headers_in_the_cache() -> None:
    """Inductor keeps precompiled C++ headers in /tmp, wherever its cache is. Without them each start would compile for twice as long."""
    codecache = importlib.import_module("torch._inductor.codecache")
    headers = Path(codecache.cache_dir()) / "precompiled_headers"
    for name, folder in (("_HEADER_DIR", headers), ("_HEADER_LOCK_DIR", headers / "locks")):
        setattr(codecache, name, str(folder))
