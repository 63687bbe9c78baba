"""Builds the parts of a run from its config: torch's switches, the compiled network, the training state."""

import copy
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.config import CompileConfig, Config, check_capture
from pipeline.data import Splits
from pipeline.data.batch import NUM_CHANNELS
from pipeline.distributed.gradient_averaging import GradientMean
from pipeline.distributed.processes import Processes
from pipeline.models import SpeedNet, build_model
from pipeline.models.blocks import Block
from pipeline.models.freeze import freeze, freeze_norms
from pipeline.models.library_weights import names_library_weights
from pipeline.optim.ema import Ema
from pipeline.optim.lookahead import Lookahead
from pipeline.optim.optimizer import build_optimizer
from pipeline.process.cache_dirs import make_cache_folder, use_cache_folder
from pipeline.training.precision import Precision
from pipeline.training.start_weights import load_start_weights
from pipeline.training.state import Totals, TrainState
from pipeline.training.torch_workarounds import (
    keep_compiler_out_of_operators,
    keep_headers_in_the_cache,
    name_operators_briefly,
)

# Compilations of one function in one process; torch's default is 8. Each image size and each network needs
# one, and each block that is compiled by itself and has a probability to be dropped.
_COMPILATIONS = 4096
# Images that the whitening of a network is computed from: those with the lowest sample ids.
_FITTED_IMAGES = 1024


def set_backends(config: Config, *, trains: bool = True) -> None:
    """Set torch's process-wide switches, and make the cache folder. No other code sets such switches.

    Args:
        config: of the run.
        trains: False for a pass or two through the network, in which cuDNN does not time its algorithms: that
            would take longer than the passes.

    Raises:
        UserError: the cache folder cannot be written.
    """
    runtime = config.runtime
    use_cache_folder()
    make_cache_folder()
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = trains and runtime.cudnn_benchmark and not runtime.deterministic
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    torch.backends.cuda.matmul.allow_tf32 = runtime.tf32
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    is_other = torch.are_deterministic_algorithms_enabled() != runtime.deterministic
    if is_other or torch.is_deterministic_algorithms_warn_only_enabled():
        torch.use_deterministic_algorithms(runtime.deterministic)  # it imports the compiler


def compile_mode(config: CompileConfig, device: torch.device) -> str:
    """Return `compile.mode` as it is on a device."""
    return config.mode_on(device.type)


def captures(config: CompileConfig, device: torch.device) -> bool:
    """Return True if the step is captured in a CUDA graph.

    Raises:
        UserError: `compile.mode` captures, and the device is the CPU.
    """
    check_capture(config, device.type)
    return config.captures_on(device.type)


def prepare_compiler(config: CompileConfig, device: torch.device) -> None:
    """Import the compiler now, which the first call of a compiled network would do; or see to it that nothing
    imports it, which takes a second."""
    if not config.compiles_on(device.type):
        keep_compiler_out_of_operators(device)
        return
    importlib.import_module("torch._dynamo")
    if config.backend == "inductor":
        importlib.import_module("torch._inductor.compile_fx")


def compile_in_place(model: nn.Module, config: CompileConfig, device: torch.device) -> None:
    """Compile a module's call. Its state-dict keys stay as they are.

    CUDA graphs are captured by `training.step.Step`, not by inductor.

    Args:
        model: compiled in place.
        config: the section `compile`.
        device: of the model.
    """
    if not config.compiles_on(device.type):
        return
    _set_compiler_switches(config)
    arguments: dict[str, Any] = {"backend": config.backend, "dynamic": False, "fullgraph": True}
    if config.backend == "inductor":
        arguments["options"] = _inductor_options(compile_mode(config, device), device)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if config.scope == "blocks" and blocks:
        for block in blocks:
            block.compile(**arguments)
    else:
        model.compile(**arguments)


@contextmanager
def without_compiled_blocks(model: nn.Module) -> Iterator[None]:
    """Call the blocks of a network eagerly, though `compile.scope: blocks` has compiled their calls.

    Calling the `forward` of a network leaves only its own compiled call alone. In evaluation each compiled
    block would be compiled once more, which the step would count as unexpected.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    compiled = [block._compiled_call_impl for block in blocks]  # what `Module.compile` sets
    for block in blocks:
        block._compiled_call_impl = None
    try:
        yield
    finally:
        for block, call in zip(blocks, compiled, strict=True):
            block._compiled_call_impl = call


def _set_compiler_switches(config: CompileConfig) -> None:
    from torch._dynamo import config as dynamo  # these imports take seconds
    from torch._functorch import config as functorch

    # the step counts unexpected ones
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = _COMPILATIONS
    # dynamo reads the gradient of a graph's input, which has none if another part of the network computed it
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    # runtime.tf32 is the user's choice
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    # our batch norm is an autograd.Function; without this switch its graphs are not cached, and every start
    # traces again
    functorch.autograd_cache_allow_custom_autograd_functions = True
    if config.drop_ended:
        # with these, torch 2.11 takes parameters for unchanged when `requires_grad` has changed, and computes
        # the gradients that a phase drops
        dynamo.skip_tensor_guards_with_matching_dict_tags = False
        dynamo.use_recursive_dict_tags_for_guards = False


def _inductor_options(mode: str, device: torch.device) -> dict[str, Any]:
    from torch._inductor import list_mode_options

    name_operators_briefly()
    if device.type == "cpu":
        keep_headers_in_the_cache()
    inductor_mode = "max-autotune-no-cudagraphs" if mode == "max-autotune" else "default"
    options = list_mode_options(inductor_mode)
    if device.type == "cuda":
        # here, because its import takes a second
        from pipeline.training.conv_gradients import SideBySide

        # combo kernels: one launch for many small independent kernels, such as the casts of the weights
        options |= {"combo_kernels": True, "post_grad_custom_post_pass": SideBySide()}
    return options


def build_raw_model(config: Config, num_classes: int, device: torch.device) -> nn.Module:
    """Build the network, float32, on the device, in the config's memory format.

    The weights are drawn on the CPU, so that they are the same on every device.
    """
    model = build_model(config.model, num_classes, NUM_CHANNELS, config.image_size, config.other_image_sizes)
    memory_format = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]


def build_initial_model(
    config: Config, num_classes: int, device: torch.device, *, pretrained: bool = True, is_main: bool = True
) -> nn.Module:
    """Build the network that a run starts from: initialised from `seed`, then loaded from `model.weights` if
    that is set, then frozen as `model.freeze` says.

    Args:
        config: of the run.
        num_classes: outputs of the network.
        device: where the network is put.
        pretrained: False leaves the weights that `model.weights` names unread.
        is_main: True on rank 0, which prints the warnings.
    """
    torch.manual_seed(config.seed)
    model = build_raw_model(config, num_classes, device)
    if pretrained:
        load_start_weights(model, config, is_main=is_main)
    freeze(model, config.model.freeze)
    return model


def build_state(
    config: Config, splits: Splits, processes: Processes, *, pretrained: bool = True
) -> TrainState:
    """Build the state of a fresh run: network, optimizer, precision, counters and moving average.

    Args:
        config: of the run.
        splits: the data set, for its number of classes.
        processes: this process among the others.
        pretrained: False leaves `model.weights` unread, as before a checkpoint is restored.

    Raises:
        UserError: on every process, if one of them cannot build the network or read `model.weights`.
    """
    num_classes, device, is_main = splits.num_classes, processes.device, processes.is_main

    def build() -> nn.Module:
        model = build_initial_model(config, num_classes, device, pretrained=pretrained, is_main=is_main)
        if pretrained and config.model.weights is None:
            fit_to_images(model, splits)
        return model

    # one download is enough for the processes of a host
    downloads = pretrained and names_library_weights(config.model)
    model = processes.main_first(build) if downloads else processes.together(build)
    return build_state_of(model, config, processes)


def fit_to_images(model: nn.Module, splits: Splits, pixels: torch.Tensor | None = None) -> None:
    """Compute the layers that depend on the training images: the whitening of a `SpeedNet`.

    Args:
        model: changed in place.
        splits: the data set.
        pixels: (N, H, W, 3) uint8, all its training images, if they are on the device of the model already.
    """
    if not isinstance(model, SpeedNet):
        return
    count = min(len(splits.train), _FITTED_IMAGES)
    pixels = torch.from_numpy(splits.train.pixels(np.arange(count))) if pixels is None else pixels[:count]
    device = model.head.weight.device
    mean, std = (torch.tensor(values, device=device) for values in (splits.mean, splits.std))
    images = (pixels.to(device) / 255 - mean) / std
    model.stem.fit(images.permute(0, 3, 1, 2))


def build_state_of(model: nn.Module, config: Config, processes: Processes) -> TrainState:
    """Build the state around a given network: float32, on the device of this process, trained in place."""
    device = processes.device
    uncompiled = copy.deepcopy(model) if config.ema.decay is not None else None
    compile_in_place(model, config.compile, device)
    processes.share_weights(model)
    if not model.training:  # a caller may have put some modules in eval mode, to stay there
        model.train()
        if config.model.freeze:
            freeze_norms(model)
    ema = None
    if uncompiled is not None and config.ema.decay is not None:
        ema = Ema(model, uncompiled, config.ema.decay)
    optimizer = build_optimizer(config.optimizer, model)
    mean = GradientMean(model.parameters()) if processes.shard.world_size > 1 else None
    lookahead = Lookahead(model) if config.lookahead.every is not None else None
    return TrainState(
        model, optimizer, Precision(config.precision, device), Totals(device), ema, lookahead, mean
    )
