"""Validates a recipe and its overrides."""

import argparse
import contextlib
import sys

from pipeline.commands.arguments import add_training, count, print_warnings
from pipeline.config import (
    SLOW_ON_CPU,
    Config,
    StepSchedule,
    check_batches,
    load_config,
    micro_batch_size,
    path_of,
    to_steps,
)
from pipeline.config.model import library_of
from pipeline.errors import UserError
from pipeline.optim.schedule import average_never_updated, parts_after_the_end
from pipeline.process.cores import usable_cores

_ANY_CLASSES = 1000
_ANY_LENGTH = 10_000  # steps of an epoch
_PATH_KEYS = (
    *("data.root", "data.cache_dir", "data.train_list", "data.test_list", "data.class_names"),
    *("data.train_folder", "data.test_folder", "data.train_shards", "data.test_shards"),
    *("model.weights", "resume", "log.dir"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser)
    parser.add_argument(
        "--processes",
        type=count,
        metavar="N",
        help="number of processes, which must divide the batch sizes",
    )
    parser.add_argument(
        "--for-launcher", action="store_true", help="print only runtime.device and the usable CPU cores"
    )


def run(arguments: argparse.Namespace) -> int:
    asked_by_launcher = arguments.for_launcher or arguments.processes is not None
    for option in ("dry_run", "profile"):  # launch.sh gives the arguments of the training, whatever they are
        if getattr(arguments, option) and not asked_by_launcher:
            flag = f"--{option.replace('_', '-')}"
            raise UserError(
                f"check: {flag} is an option of train; use `python -m pipeline train CONFIG {flag}`"
            )
    config = load_config(arguments.config, arguments.overrides)
    _check_paths(config)
    processes = arguments.processes or 1
    check_batches(config, processes)
    if micro_batch_size(config, processes) == 1:  # others need no look at the network
        from pipeline.models.norm_batches import check_norm_batches  # imports torch, which takes seconds

        check_norm_batches(config, processes)
    if arguments.for_launcher:
        print(config.runtime.device, usable_cores())
        return 0
    if processes == 1:  # otherwise launch.sh asks, and the run prints the warnings itself
        print_warnings(config)
        for warning in _warnings_of_plan(config):
            print(f"warning: {warning}", file=sys.stderr)
        _check_network(config)
    print(f"{arguments.config}: valid")
    return 0


def _check_paths(config: Config) -> None:
    """Refuse a path whose home folder is not known."""
    for key in _PATH_KEYS:
        value: object = config
        for name in key.split("."):
            value = getattr(value, name, None)  # a key of another kind does not exist
        if isinstance(value, str):
            path_of(key, value)


def _check_network(config: Config) -> None:
    """Refuse a network of a library, weights, and patterns of parameters that a run would refuse.

    Other networks are checked with the config; this imports torch, which takes seconds.
    """
    model = config.model
    patterns = model.freeze or config.optimizer.groups
    if model.weights is None and library_of(model.name) is None and not patterns:
        return
    import torch

    from pipeline.data.datasets.counts import num_classes_of
    from pipeline.models.library_weights import can_be_read_offline
    from pipeline.optim.parts import partition
    from pipeline.training.build import build_initial_model

    num_classes = 0
    with contextlib.suppress(UserError):  # the data set may not be on this machine
        num_classes = num_classes_of(config)
    # a run that is continued does without `model.weights`, and nothing is downloaded here
    fresh = config.resume == "none" and can_be_read_offline(model, config.image_size)
    device, num_classes = torch.device("cpu"), num_classes or _ANY_CLASSES
    network = build_initial_model(config, num_classes, device, pretrained=fresh, is_main=False)
    partition(config.optimizer, network)


def _warnings_of_plan(config: Config) -> list[str]:
    """Return the warnings of the plan that need neither the data nor the machine; `--dry-run` tells all."""
    schedule = config.schedule
    milestones = schedule.milestones if isinstance(schedule, StepSchedule) else ()
    length = config.duration, _ANY_LENGTH, to_steps(config.duration, _ANY_LENGTH)
    warnings = []
    if _compare_without_data(config.duration, schedule.warmup, *milestones):
        warnings += parts_after_the_end(schedule, *length)
    if _compare_without_data(config.duration, config.ema.every):
        warnings += average_never_updated(config.ema, *length)
    if config.precision.mode == "fp16" and config.runtime.device == "cpu":
        warnings.append(SLOW_ON_CPU)
    return warnings


def _compare_without_data(*durations: str) -> bool:
    """Return True if no duration is in steps: epochs compare without their length."""
    return not any(duration.endswith("st") for duration in durations)
