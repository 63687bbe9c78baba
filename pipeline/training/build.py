"""From a config to the parts of a run. Training, benchmarks and tests all build through here."""

import copy
import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import CompileConfig, Config
from pipeline.data import Splits
from pipeline.data.batch import NUM_CHANNELS
from pipeline.distributed.gradient_averaging import GradientMean
from pipeline.distributed.processes import Processes
from pipeline.models import ResNet, build_model, load_pretrained
from pipeline.optim.ema import Ema
from pipeline.optim.optimizer import build_optimizer
from pipeline.process.cache_dirs import make_cache_folder, use_cache_folder
from pipeline.training.precision import Precision
from pipeline.training.state import Totals, TrainState
from pipeline.training.torch_workarounds import keep_headers_in_the_cache, name_operators_briefly

_COMPILATIONS = (
    256  # of one function in one process, in place of 8: each size of the images and each network is one
)


def set_backends(config: Config) -> None:
    """Set torch's process-wide switches (and no others are set anywhere), and make the cache folder.

    Raises:
        UserError: the cache folder cannot be written.
    """
    runtime = config.runtime
    use_cache_folder()
    make_cache_folder()
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = runtime.cudnn_benchmark and not runtime.deterministic
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    torch.backends.cuda.matmul.allow_tf32 = runtime.tf32
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(runtime.deterministic)


def compile_mode(config: CompileConfig, device: torch.device) -> str:
    """`compile.mode` with `auto` resolved: `reduce-overhead` on a GPU, `none` on the CPU."""
    if config.mode == "auto":
        return "reduce-overhead" if device.type == "cuda" else "none"
    return config.mode


def captures(config: CompileConfig, device: torch.device) -> bool:
    """Whether the step is captured in a CUDA graph."""
    return compile_mode(config, device) in ("reduce-overhead", "max-autotune")


def import_compiler(config: CompileConfig, device: torch.device) -> None:
    """Import what the first call of a network that is compiled imports otherwise."""
    if compile_mode(config, device) != "none" and config.backend == "inductor":
        importlib.import_module("torch._inductor.compile_fx")


def compile_in_place(
    model: nn.Module, config: CompileConfig, device: torch.device, *, divided: bool = False
) -> None:
    """Compile the module's call, leaving its state-dict keys alone. CUDA graphs are the step's business, not inductor's.

    DIVIDED makes two graphs of a ResNet, so that the gradients of its last stage are there before those of the others are computed.
    """
    mode = compile_mode(config, device)
    if mode == "none":
        return
    from torch._dynamo import config as dynamo  # with torch's compiler, whose import takes seconds
    from torch._functorch import config as functorch
    from torch._inductor import list_mode_options

    dynamo.recompile_limit = _COMPILATIONS  # unexpected ones are counted by the step
    warnings.filterwarnings(
        "ignore", "TensorFloat32 tensor cores", UserWarning
    )  # runtime.tf32 says what is wanted
    # our batch norm is an autograd.Function, whose traced graphs are in the cache's key; without this each start traces anew
    functorch.autograd_cache_allow_custom_autograd_functions = True
    arguments: dict[str, Any] = {"backend": config.backend, "dynamic": False, "fullgraph": True}
    if config.backend == "inductor":
        inductor_mode = "max-autotune-no-cudagraphs" if mode == "max-autotune" else "default"
        # combo kernels: one launch for many small independent kernels, such as the casts of the weights
        arguments["options"] = {**list_mode_options(inductor_mode), "combo_kernels": device.type == "cuda"}
        name_operators_briefly()
        if device.type == "cpu":
            keep_headers_in_the_cache()
    if divided and isinstance(model, ResNet):
        model.divide()
        # dynamo asks what goes into a graph for its gradient, and what goes into the second has none of its own
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        front, back = torch.compile(model.front, **arguments), torch.compile(model.back, **arguments)
        model._compiled_call_impl = lambda images: back(front(images))  # what `Module.compile` sets
    else:
        model.compile(**arguments)


def build_raw_model(config: Config, num_classes: int, device: torch.device) -> nn.Module:
    """The network, float32, on the device, in the config's memory format. Initialised on the CPU: the same weights on every device."""
    model = build_model(config.model, num_classes, NUM_CHANNELS, config.image_size, config.other_image_sizes)
    memory_format = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]


def build_initial_model(
    config: Config, num_classes: int, device: torch.device, *, pretrained: bool = True, is_main: bool = True
) -> nn.Module:
    """The network that a run starts from: initialised from `seed`, with the weights of the file that `model.weights` names over that.

    IS_MAIN says whether this process is the one that warns.
    """
    torch.manual_seed(config.seed)
    model = build_raw_model(config, num_classes, device)
    if pretrained and config.model.weights is not None:
        load_pretrained(model, Path(config.model.weights).expanduser(), is_main=is_main)
    return model


def build_state(
    config: Config, splits: Splits, processes: Processes, *, pretrained: bool = True
) -> TrainState:
    """Model (compiled and wrapped as the config and the launcher say), optimizer, precision, counters, average of a fresh run.

    Without PRETRAINED, as where a checkpoint comes over it, the file that `model.weights` names is not needed.
    """
    num_classes, device = splits.num_classes, processes.device
    model = build_initial_model(config, num_classes, device, pretrained=pretrained, is_main=processes.is_main)
    return build_state_of(model, config, processes)


def build_state_of(model: nn.Module, config: Config, processes: Processes) -> TrainState:
    """As `build_state`, around a network that is there: float32, on the device of this process. It is trained in place."""
    device = processes.device
    uncompiled = copy.deepcopy(model) if config.ema.decay is not None else None
    several = processes.shard.world_size > 1
    compile_in_place(model, config.compile, device, divided=several)
    processes.share_weights(model)
    if not model.training:  # else as they are: parts of it may have been put in eval mode to stay there
        model.train()
    ema = (
        Ema(model, uncompiled, config.ema.decay)
        if uncompiled is not None and config.ema.decay is not None
        else None
    )
    optimizer = build_optimizer(config.optimizer, model)
    first = model.back_parameters() if isinstance(model, ResNet) else []
    mean = GradientMean(model.parameters(), first) if several else None
    return TrainState(model, optimizer, Precision(config.precision, device), Totals(device), ema, mean)
