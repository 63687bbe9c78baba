"""Validates a recipe and its overrides."""

import argparse
import contextlib

from pipeline.commands.arguments import add_training, count, print_warnings
from pipeline.config import Config, check_batches, load_config, micro_batch_size
from pipeline.config.model import library_of
from pipeline.errors import UserError

_ANY_CLASSES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser)
    parser.add_argument(
        "--processes",
        type=count,
        default=1,
        metavar="N",
        help="number of processes, which must divide the batch sizes",
    )
    parser.add_argument("--print-device", action="store_true", help="print runtime.device only")


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    check_batches(config, arguments.processes)
    if micro_batch_size(config, arguments.processes) == 1:  # others need no look at the network
        from pipeline.models.norm_batches import check_norm_batches  # imports torch, which takes seconds

        check_norm_batches(config, arguments.processes)
    if arguments.print_device:
        print(config.runtime.device)
        return 0
    if arguments.processes == 1:  # otherwise launch.sh asks, and the run prints the warnings itself
        print_warnings(config)
        _check_network(config)
    print(f"{arguments.config}: valid")
    return 0


def _check_network(config: Config) -> None:
    """Refuse a network of a library, and weights of a file, that a run would refuse.

    Other networks are checked with the config; this imports torch, which takes seconds.
    """
    if config.model.weights is None and library_of(config.model.name) is None:
        return
    import torch

    from pipeline.data.datasets.counts import num_classes_of
    from pipeline.training.build import build_initial_model

    num_classes = 0
    with contextlib.suppress(UserError):  # the data set may not be on this machine
        num_classes = num_classes_of(config)
    fresh = config.resume == "none"  # a run that is continued does without `model.weights`
    device = torch.device("cpu")
    build_initial_model(config, num_classes or _ANY_CLASSES, device, pretrained=fresh, is_main=False)
