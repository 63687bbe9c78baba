"""Joins the processes of a run, which accelerate starts and connects, and checks them against the config."""

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.config import Config
from pipeline.data.sampling.batch_plan import Shard
from pipeline.errors import TrainingError, UserError, first_line
from pipeline.process.world import World, forget_world, read_world

Result = TypeVar("Result")

# until all processes have started: a host may be late, but one that never starts must not be waited for
_MEETING_TIMEOUT = timedelta(minutes=10)
# the others wait while rank 0 downloads and decodes a data set; in training, `Watch` ends a hang sooner
_SETUP_TIMEOUT = timedelta(hours=6)
_RUNS = count()  # numbers the runs of this process, in the same order on all processes


@dataclass(frozen=True)
class Processes:
    """Describes this process among the others, and works with them.

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
        """Do the work on rank 0; return its result, or raise its error, on every process.

        So no process waits for one that has failed.
        """
        result, error = _attempt(work) if self.is_main else (None, None)
        if self.shard.world_size > 1:
            shared: list[Any] = [result, self._shareable(error)]
            torch.distributed.broadcast_object_list(shared, src=0)
            result, error = (result, error) if self.is_main else shared
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Do the work on every process, on rank 0 first; raise the error of one process on all processes."""
        done: list[Result] = []
        self.on_main(lambda: done.append(work()))
        self.together(lambda: None if self.is_main else done.append(work()))
        return done[0]

    def together(self, work: Callable[[], Result]) -> Result:
        """Do the work on every process at once; raise the error of one process on all processes.

        The work must not wait for other processes.
        """
        result, error = _attempt(work)
        errors: list[Any] = [error]
        if self.shard.world_size > 1:
            errors = [None] * self.shard.world_size
            torch.distributed.all_gather_object(errors, self._shareable(error))
        for problem in (error, *errors):
            if problem is not None:
                raise problem
        return result  # type: ignore[return-value]

    def _shareable(self, error: Exception | None) -> Exception | None:
        """Return the error to raise on the other processes: an error of a library may not be picklable."""
        if error is None or isinstance(error, UserError):
            return error
        return TrainingError(f"process {self.shard.rank}: {type(error).__name__}: {error}")

    def open_store(self) -> torch.distributed.Store | None:
        """Open a key-value store for one run, in the same order on all processes; return None on one process.

        The store has a connection of its own, so any thread can use it during a collective operation.
        """
        if self.shard.world_size == 1:
            return None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return torch.distributed.PrefixStore(
            f"run-{next(_RUNS)}", torch.distributed.TCPStore(address, port, is_master=False)
        )

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Copy the parameters and buffers of rank 0 to every process, in place."""
        if self.shard.world_size > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                contiguous = tensor.contiguous()  # a broadcast needs this; channels_last is not
                torch.distributed.broadcast(contiguous, src=0)
                tensor.copy_(contiguous)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum the values over the processes, in place."""
        if self.shard.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # not swallowed: the caller raises it once the other processes know
        return None, error


def pick_device(config: Config) -> torch.device:
    """Return the device that `runtime.device` means on this machine; of several GPUs, the first.

    Raises:
        UserError: the config asks for a GPU, and torch sees none.
    """
    device, has_gpu = config.runtime.device, torch.cuda.is_available()
    if device == "gpu" and not has_gpu:
        raise UserError(
            "runtime.device: gpu, but torch sees none; check nvidia-smi, or use runtime.device=auto"
        )
    return torch.device("cuda", 0) if device != "cpu" and has_gpu else torch.device("cpu")


def connect(config: Config) -> Processes:
    """Join the process group that a launcher has set up; without one, this process trains alone.

    Raises:
        UserError: there is no GPU though the config asks for one; the number of processes is not that of
            launch.sh; or a mixed precision or dynamo backend of `accelerate launch` contradicts the config.
        TrainingError: other processes of the group have not started in time.
    """
    _check_launcher(config)
    world = read_world()
    wants_gpu = pick_device(config).type == "cuda"
    if wants_gpu and world.local_size > torch.cuda.device_count():
        raise UserError(
            f"more processes than the {torch.cuda.device_count()} visible GPUs; start at most one per GPU "
            "(NUM_PROCESSES)"
        )
    expected = os.environ.get("QUICKRES_NUM_PROCESSES")
    if expected is not None and int(expected) != world.size:
        raise UserError(
            f"launch.sh started {expected} processes, but {world.size} are connected; on the "
            "CPU use configs/accelerate/cpu2.yaml, with which accelerate starts several processes"
        )
    if world.size == 1:
        if (warning := forget_world()) is not None:
            print(f"warning: {warning}", file=sys.stderr)
    elif not torch.distributed.is_initialized():
        _meet(world, "nccl" if wants_gpu else "gloo")
    accelerator = Accelerator(cpu=not wants_gpu, mixed_precision="no", dynamo_backend="no")
    # one name per device: accelerate's is cpu:0 with several processes, and cuda without an index with one
    on_gpu = accelerator.device.type == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Processes(device, Shard(accelerator.process_index, accelerator.num_processes))


def _meet(world: World, backend: str) -> None:
    """Open the process group once all its processes have started."""
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(world.local_size))
    limit = f"{_MEETING_TIMEOUT.total_seconds():.0f} s"
    place = f"all {world.size} processes (WORLD_SIZE) at {world.host}:{world.port} (MASTER_ADDR, MASTER_PORT)"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # torchrun starts all processes itself
        print(f"process {world.rank}: waiting at most {limit} for {place}", file=sys.stderr)
    try:
        if world.rank > 0:
            _wait_for_store(world)
        store, _, _ = next(torch.distributed.rendezvous("env://", timeout=_MEETING_TIMEOUT))
    except (torch.distributed.DistError, OSError) as error:
        raise TrainingError(
            f"waited {limit} in vain for {place}: {first_line(error).rstrip('.')}. Start all at about the "
            "same time, with an address that all can reach; or train alone: unset RANK WORLD_SIZE "
            "MASTER_ADDR MASTER_PORT"
        ) from None
    store.set_timeout(_SETUP_TIMEOUT)
    torch.distributed.init_process_group(
        backend, store=store, rank=world.rank, world_size=world.size, timeout=_SETUP_TIMEOUT
    )


def _wait_for_store(world: World) -> None:
    """Wait until the first process listens: torch would print a trace of itself at each attempt.

    Raises:
        OSError: it does not listen in time.
    """
    ends = time.monotonic() + _MEETING_TIMEOUT.total_seconds()
    while True:
        try:
            socket.create_connection((world.host, world.port), timeout=5.0).close()
            return
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.5)


def _check_launcher(config: Config) -> None:
    """Refuse options of `accelerate launch` that contradict precision and compiling of the config."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision.mode):
        raise UserError(
            f"accelerate launch: mixed precision {precision}, but precision.mode is "
            f"{config.precision.mode}; change one of the two (precision.mode={precision}, or "
            "--mixed_precision no)"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("no", config.compile.backend) or (
        backend != "no" and config.compile.mode in ("none", "graph")
    ):
        raise UserError(
            f"accelerate launch: dynamo backend {backend}, but compile.mode is {config.compile.mode} "
            f"with compile.backend {config.compile.backend}; change one of the two (--dynamo_backend no, or "
            "the compile keys)"
        )


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum the values over the processes that are connected, in place; one process alone keeps its own."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def average_batch_norm(model: nn.Module, trained: nn.Module | None = None) -> None:
    """Average the running statistics of batch norm over the processes, which have seen different data.

    Norms in evaluation mode are left alone: they are frozen, and the same everywhere.

    Args:
        model: changed in place.
        trained: the network whose modes count, if MODEL is its moving average.
    """
    if not torch.distributed.is_initialized():
        return
    in_training = {name for name, module in (trained or model).named_modules() if module.training}
    buffers = [
        buffer
        for name, buffer in model.named_buffers()
        if name.endswith(("running_mean", "running_var")) and name.rpartition(".")[0] in in_training
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
