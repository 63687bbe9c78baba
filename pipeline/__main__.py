"""Runs one command on a recipe, a run or a data set: `python -m pipeline COMMAND`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

from pipeline import train
from pipeline.commands import (
    check,
    check_data,
    config_reference,
    evaluate,
    explain,
    export,
    lr_find,
    predict,
    report,
    summary,
)
from pipeline.commands.exit_code import exit_code_of
from pipeline.process.cache_dirs import use_cache_folder

# Each has `add_arguments(parser)` and `run(arguments)`; the first line of its docstring is the help text.
COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "check": check,
    "summary": summary,
    "lr-find": lr_find,
    "config-reference": config_reference,
    "check-data": check_data,
    "evaluate": evaluate,
    "explain": explain,
    "predict": predict,
    "export": export,
    "report": report,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run_command=module.run)
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, 2 for bad input."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    use_cache_folder()
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse accepts no further `key=value` after an option
    if not hasattr(arguments, "overrides") or any("=" not in item or item.startswith("-") for item in rest):
        parser.parse_args(argv)  # exits, and prints the error
    else:
        arguments.overrides = [*arguments.overrides, *rest]
    return exit_code_of(lambda: arguments.run_command(arguments))


if __name__ == "__main__":
    sys.exit(main())
