"""Validates a recipe and its overrides."""

import argparse

from pipeline.commands.arguments import add_training, count, print_warnings
from pipeline.config import check_batches, load_config


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
    if arguments.print_device:
        print(config.runtime.device)
        return 0
    if arguments.processes == 1:  # otherwise launch.sh asks, and the run prints the warnings itself
        print_warnings(config)
    print(f"{arguments.config}: valid")
    return 0
