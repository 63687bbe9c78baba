"""Works around faults of certain torch versions."""

import importlib
from pathlib import Path

import torch
from torch.torch_version import TorchVersion


def name_operators_briefly() -> None:
    """Keep inductor from writing out the arguments of an operator that it meets for the first time.

    torch 2.11 does this for a line of its log, even if the log is off; 2.15 no longer does. An argument's
    text contains the text of its own inputs, so every residual block doubles the text. For the gradient of a
    ResNet-56's stem, the last operator, there are 27 blocks before it.
    """
    if TorchVersion(torch.__version__) < "2.15":
        exc = importlib.import_module("torch._inductor.exc")
        exc.OperatorIssue.operator_str = staticmethod(lambda target, args, kwargs: f"target: {target}")


def keep_headers_in_the_cache() -> None:
    """Keep inductor's precompiled C++ headers in its cache folder; inductor would always use /tmp.

    Without these headers each start would compile twice as long.
    """
    codecache = importlib.import_module("torch._inductor.codecache")
    headers = Path(codecache.cache_dir()) / "precompiled_headers"
    for name, folder in (("_HEADER_DIR", headers), ("_HEADER_LOCK_DIR", headers / "locks")):
        setattr(codecache, name, str(folder))
