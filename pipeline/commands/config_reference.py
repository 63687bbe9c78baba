"""Prints keys with their types, defaults and meanings: all of them, or those that hold a word."""

import argparse

from pipeline import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "word",
        nargs="?",
        default="",
        metavar="KEY_OR_WORD",
        help="print only the keys with this word in their name or meaning, such as momentum",
    )


def run(arguments: argparse.Namespace) -> int:
    print(config.reference_table(arguments.word))
    return 0
