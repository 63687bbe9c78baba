"""Runs one command on a recipe, a run or a data set: `python -m pipeline COMMAND`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.commands.exit_code import checked_output, exit_code_of, run_process

if TYPE_CHECKING:
    import argparse

# Name of a command, and its help: without docstrings (`python -OO`) there is help, too. The module
# `pipeline/commands/NAME.py`, for `train` `pipeline/train.py`, has `add_arguments(parser)` and
# `run(arguments)`.
COMMANDS = {
    "train": "Trains one run. For several processes: `accelerate launch -m pipeline.train CONFIG …`.",
    "compile": "Compiles the step of a recipe before any training; carries compiled code to other machines.",
    "check": "Validates a recipe and its overrides.",
    "summary": "Prints the layers of a recipe's network with shapes, parameters, memory and FLOPs, and draws "
    "its graph.",
    "lr-find": "Runs a learning-rate range test: draws the curve and suggests a maximum.",
    "config-reference": "Prints keys with their types, defaults and meanings: all of them, or those that "
    "hold a word.",
    "check-data": "Decodes all images of a data set, lists bad files, counts classes, draws sizes; exit code "
    "1: bad files.",
    "evaluate": "Prints the accuracy of a run's checkpoint on the test set.",
    "explain": "Draws Grad-CAM maps of misclassified test images, of chosen test images or of files, as one "
    "picture.",
    "predict": "Prints the most probable classes of images.",
    "export": "Writes a run's network as a file for other programs, and checks that it gives the same "
    "logits.",
    "tensorboard": "Starts TensorBoard on the runs of a folder, each once.",
    "report": "Draws one HTML page of a run, or of several runs side by side, from their folders alone.",
}


def _parser(command: str = "") -> "argparse.ArgumentParser":
    """Return the parser, with the arguments of this command; without those of the others, whose modules would
    have to be imported."""
    import argparse
    import importlib

    about = "Runs one command on a recipe, a run or a data set."
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=about)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, text in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=text)
        if name == command:
            module = "train" if name == "train" else f"commands.{name.replace('-', '_')}"
            work = importlib.import_module(f"pipeline.{module}")
            subparser.set_defaults(run_command=work.run)
            work.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, 2 for bad input."""
    # imports are here, after `run_process` has begun, so that Ctrl-C meanwhile prints no traceback
    import logging
    import sys

    from pipeline.process.cache_dirs import use_cache_folder
    from pipeline.process.threads import wait_briefly

    argv = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    use_cache_folder()
    wait_briefly()
    parser = _parser(*argv[:1])
    arguments, rest = parser.parse_known_args(argv)
    # argparse accepts no further `key=value` after an option
    if not hasattr(arguments, "overrides") or any("=" not in item or item.startswith("-") for item in rest):
        parser.parse_args(argv)  # exits, and prints the error
    else:
        arguments.overrides = [*arguments.overrides, *rest]
    code = exit_code_of(lambda: arguments.run_command(arguments))
    # a finished run is finished, also if nobody could read its lines
    return code if arguments.command == "train" else checked_output(code)


if __name__ == "__main__":
    run_process(main, at_sigterm=True)
