"""Works around faults and costs of certain torch versions."""

import importlib
from pathlib import Path

import torch
from torch._library.custom_ops import OPDEFS
from torch.torch_version import TorchVersion

# packages of operators that run on a device
_ON_CPU = ("label_smoothing_cross_entropy",)
_ON_GPU = (
    *(*_ON_CPU, "muon", "batch_norm_act", "dual_batch_norm_act", "pool_norm_act", "conv_pool_norm_act"),
    *("norm_relu_pool", "norm_act_inference", "stem_conv", "stem_conv_norm_act", "whitening_stem"),
)


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


def keep_compiler_out_of_operators(device: torch.device) -> None:
    """Let our operators be called without torch's compiler, which torch imports on the first call of each.

    It does so to keep torch.compile out of their kernels, and remembers on the function what it then calls:
    here, the function itself. A compiled network does not trace into its operators, so that the mark changes
    nothing there.

    Args:
        device: its operators are imported first, those of the CPU or all.
    """
    for name in _ON_GPU if device.type == "cuda" else _ON_CPU:
        importlib.import_module(f"kernels.{name}.op")
    for name, operator in OPDEFS.items():
        if name.startswith("quickres::"):
            for kernel in operator._backend_fns.values():
                function = getattr(kernel, "__wrapped__", None)
                if function is not None:
                    setattr(function, "__dynamo_disable", function)
