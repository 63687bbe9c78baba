"""Processes and devices: accelerate starts and connects them, this module checks that they are what was asked for."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from pipeline.config import Config
from pipeline.data.sampling.batch_plan import Shard
from pipeline.errors import TrainingError, UserError

Result = TypeVar("Result")

_SETUP_TIMEOUT = timedelta(
    hours=6
)  # the others wait while rank 0 downloads and decodes a data set; once in training, `Watch` is quicker
_RUNS = count()  # of this process, in the same order on all


@dataclass(frozen=True)
class Processes:
    """This process among the others.

    Attributes:
        device: of this process.
        shard: rank and world size.
    """

    device: torch.device
    shard: Shard

    @property
    def is_main(self) -> bool:
        return self.shard.rank == 0

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Do the work on rank 0 and give every process its result, or its error, so that no process waits for a dead one."""
        result, error = _attempt(work) if self.is_main else (None, None)
        if self.shard.world_size > 1:
            shared: list[Any] = [result, self._shareable(error)]
            torch.distributed.broadcast_object_list(shared, src=0)
            result, error = (result, error) if self.is_main else shared
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Do the work on every process, on rank 0 before the others; an error of one is everybody's."""
        done: list[Result] = []
        self.on_main(lambda: done.append(work()))
        if self.shard.world_size > 1:
            own = None if self.is_main else _attempt(lambda: done.append(work()))[1]
            errors: list[Any] = [None] * self.shard.world_size
            torch.distributed.all_gather_object(errors, self._shareable(own))
            for error in (own, *errors):
                if error is not None:
                    raise error
        return done[0]

    def _shareable(self, error: Exception | None) -> Exception | None:
        """What the other processes are told of an error here; one that is none of ours might not survive the way."""
        if error is None or isinstance(error, UserError):
            return error
        return TrainingError(f"process {self.shard.rank}: {type(error).__name__}: {error}")

    def open_store(self) -> torch.distributed.Store | None:
        """A key-value store of one run, which all processes open in the same order; None on one process.

        Its connection is its own, so that it can be used, from any thread, while a collective operation is under way.
        """
        if self.shard.world_size == 1:
            return None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return torch.distributed.PrefixStore(
            f"run-{next(_RUNS)}", torch.distributed.TCPStore(address, port, is_master=False)
        )

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Every process takes the parameters and buffers of rank 0, in place."""
        if self.shard.world_size > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                whole = tensor.contiguous()  # as a broadcast wants it, whatever the memory format
                torch.distributed.broadcast(whole, src=0)
                tensor.copy_(whole)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over processes, in place."""
        if self.shard.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # not swallowed: the caller raises it once the other processes know
        return None, error


def pick_device(config: Config) -> torch.device:
    """The device that `runtime.device` means on this machine; of several GPUs, the first.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if config.runtime.device == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device: gpu is asked for, but torch sees none; check nvidia-smi, or use runtime.device=auto"
        )
    return (
        torch.device("cuda", 0)
        if config.runtime.device != "cpu" and torch.cuda.is_available()
        else torch.device("cpu")
    )


def connect(config: Config) -> Processes:
    """Join the process group that the launcher set up.

    Raises:
        UserError: no GPU where one is asked for, another number of processes than launch.sh started, or a mixed precision or dynamo
            backend handed to `accelerate launch` that contradicts the config.
    """
    _check_launcher(config)
    wants_gpu = pick_device(config).type == "cuda"
    if wants_gpu and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count():
        raise UserError(
            f"more processes than the {torch.cuda.device_count()} visible GPUs; start at most one per GPU (NUM_PROCESSES)"
        )
    group = InitProcessGroupKwargs(timeout=_SETUP_TIMEOUT)
    accelerator = Accelerator(
        cpu=not wants_gpu, mixed_precision="no", dynamo_backend="no", kwargs_handlers=[group]
    )
    expected = os.environ.get("QUICKRES_NUM_PROCESSES")
    if expected is not None and int(expected) != accelerator.num_processes:
        raise UserError(
            f"launch.sh started {expected} processes, but {accelerator.num_processes} found each other; on the CPU use "
            "configs/accelerate/cpu2.yaml, which accelerate takes for several processes"
        )
    # one name for a device: accelerate says cpu:0 with several processes, and cuda without an index with one
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if accelerator.device.type == "cuda"
        else torch.device("cpu")
    )
    return Processes(device, Shard(accelerator.process_index, accelerator.num_processes))


def _check_launcher(config: Config) -> None:
    """What `accelerate launch` was told must not contradict the config, which owns precision and compiling."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision.mode):
        raise UserError(
            f"accelerate launch was given mixed precision {precision}, but precision.mode is {config.precision.mode}; change one of "
            f"the two (precision.mode={precision}, or --mixed_precision no)"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("no", config.compile.backend) or (backend != "no" and config.compile.mode == "none"):
        raise UserError(
            f"accelerate launch was given dynamo backend {backend}, but compile.mode is {config.compile.mode} with compile.backend "
            f"{config.compile.backend}; change one of the two (--dynamo_backend no, or the compile keys)"
        )


def average_batch_norm(model: nn.Module) -> None:
    """Average the running statistics of batch norm over the processes, each of which has seen its own share of the data."""
    if not torch.distributed.is_initialized():
        return
    buffers = [
        buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
