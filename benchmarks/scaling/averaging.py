"""Averages gradients in other ways than training does, to compare them with it."""

from dataclasses import replace

import torch
from accelerate import Accelerator

from benchmarks.scaling.variants import ALONE, DDP
from pipeline.config import Config
from pipeline.data import Splits
from pipeline.data.sampling.batch_plan import Shard
from pipeline.distributed.gradient_averaging import GradientMean
from pipeline.distributed.processes import Processes
from pipeline.training.trainer import Trainer

# DDP times the first steps, and then orders its buckets anew: a capture must come after that (torch's notes
# on CUDA graphs ask for 11 steps)
_EAGER_STEPS_OF_DDP = 11


def build_with(variant: str, config: Config, splits: Splits, processes: Processes) -> Trainer:
    """Build a trainer whose gradients are averaged in another way.

    Args:
        variant: `DDP`: torch's DistributedDataParallel, as accelerate prepares a model with its defaults;
            `ALONE`: as in training on several processes, but each process averages with itself.
        config, splits: of the trainer; its own loaders give one process the whole batch, and are not used.
        processes: of the group.
    """
    trainer = Trainer.build(config, splits, replace(processes, shard=Shard(0, 1)))
    state = trainer.state
    trainer.step.phases = trainer.step.phases[:1]  # as on several processes
    if variant == DDP:
        on_cpu = processes.device.type == "cpu"
        state.model = Accelerator(cpu=on_cpu, mixed_precision="no", dynamo_backend="no").prepare(state.model)
        assert isinstance(state.model, torch.nn.parallel.DistributedDataParallel), (
            "there are several processes"
        )
        trainer.step.eager_steps = _EAGER_STEPS_OF_DDP
    else:
        assert variant == ALONE, variant
        state.gradient_mean = GradientMean(state.model.parameters(), _own_group())
    return trainer


def _own_group() -> torch.distributed.ProcessGroup:
    """Return a group of this process alone. Every process makes all groups, as torch asks for."""
    size = torch.distributed.get_world_size()
    groups = [torch.distributed.new_group([number]) for number in range(size)]
    mine = groups[torch.distributed.get_rank()]
    assert isinstance(mine, torch.distributed.ProcessGroup)
    return mine
