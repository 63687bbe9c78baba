"""Prints every key with its type, its default and its meaning."""

import argparse

from pipeline import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    print(config.reference_table())
    return 0
