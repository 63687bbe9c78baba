"""`python -m benchmarks [NAME] [CONFIG] [key=value …]`: time a config, or one part of it in many variants."""

from collections.abc import Sequence

from pipeline.commands.exit_code import checked_output, exit_code_of, run_process
from pipeline.errors import UserError

_ABOUT = (
    "`python -m benchmarks [NAME] [CONFIG] [key=value …]`: time a config, or one part of it in many variants."
)

# Name of a command: its module in this folder, and a summary.
BENCHMARKS = {  # with `run(session)`, which may return an exit code
    "bench": ("suites.bench", "one config: loader, step, both together, and the bottleneck (the default)"),
    "loaders": ("suites.loaders", "loaders alone, by batch size"),
    "decoders": ("suites.decoders", "decoders of streamed images, by CPU cores"),
    "step": ("suites.step", "the step alone: model, precision, layout, compile mode, batch size"),
    "end_to_end": ("suites.end_to_end", "loader and step together, beside the step alone and a plain loop"),
    "kernels": ("kernels.suite", "Triton kernels beside torch.compile of their references"),
    "kernels-by-share": ("suites.kernels_by_share", "the time of a step, divided among its kernels"),
    "ablation": ("suites.ablation", "from a plain fp32 recipe to the full one, one switch at a time"),
    "startup": (
        "suites.startup",
        "parts of a run from the command to its end, with cold and warm caches",
    ),
    "neighbour": (
        "suites.neighbour",
        "training on two CPU cores beside a program that uses one of them",
    ),
    "saving": ("suites.saving", "training with a checkpoint an epoch, beside training without"),
    "time-to-accuracy": (
        "suites.time_to_accuracy",
        "whole trainings with many seeds: seconds, accuracy, and a test that it reaches a target",
    ),
    "peers": (
        "suites.peers",
        "whole trainings beside the training scripts of torchvision and timm: speed, accuracy, memory, CPU",
    ),
    "scaling": ("scaling.scaling", "weak and strong scaling over the GPUs of this host, beside one of them"),
}
OTHERS = {  # with `main(arguments)`
    "make-folder": ("suites.make_folder", "make a folder of large JPEGs for the loaders of streamed folders"),
    "make-shards": ("suites.make_shards", "pack class folders into tar shards, for the loaders of shards"),
    "sweep": ("sweep.run", "train a recipe with lists of overrides, as given by a file in configs/sweeps"),
    "recipes": ("publish.recipes", "make records of the shipped recipes out of finished runs of them"),
    "pretrained": ("publish.pretrained", "make shipped weights and their card out of a run of a recipe"),
    "readme": ("publish.readme", "update tables, figures and the prices in the recipes from the records"),
}
COMMANDS = BENCHMARKS | OTHERS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit code: 2 for bad input, 1 if a measurement cannot be trusted, a run failed or a target is missed.
    """
    # imports are here, after `run_process` has begun, so that Ctrl-C meanwhile prints no traceback
    import logging
    import sys

    from pipeline.process.cache_dirs import use_cache_folder
    from pipeline.process.threads import wait_briefly

    arguments = list(sys.argv[1:] if argv is None else argv)
    use_cache_folder()
    wait_briefly()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if arguments and arguments[0] in ("-h", "--help"):
        print(_help())
        return checked_output(0)
    return checked_output(exit_code_of(lambda: _run(arguments)))


def _help() -> str:
    names = "\n".join(f"  {name:<18}{summary}" for name, (_, summary) in COMMANDS.items())
    usage = "`python -m benchmarks NAME -h` lists the arguments of one."
    return f"{_ABOUT}\n\nNAME is one of:\n{names}\n\n{usage}"


def _run(arguments: list[str]) -> int:
    import importlib

    name = _take_name(arguments)
    if name in OTHERS:
        return importlib.import_module(f"benchmarks.{COMMANDS[name][0]}").main(arguments)
    return _measure(name, arguments)


def _take_name(arguments: list[str]) -> str:
    """Take the command's name off the arguments; before a recipe, a key or an option it is `bench`."""
    import difflib
    from pathlib import Path

    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        return arguments.pop(0)
    is_word = first[:1] != "-" and first.replace("-", "").replace("_", "").isalpha()
    if is_word and not Path(first).exists():
        near = difflib.get_close_matches(first, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"benchmarks: {', '.join(COMMANDS)}"
        raise UserError(f"{first}: neither a benchmark nor a recipe; {hint}")
    return "bench"


def _measure(name: str, arguments: list[str]) -> int:
    import argparse
    import importlib

    from benchmarks.arguments import ARGUMENTS
    from benchmarks.measure.options import add_arguments, read_arguments
    from pipeline.config import load_config
    from pipeline.process.fast_import import imports_uncollected

    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=COMMANDS[name][1])
    add_arguments(parser)
    ARGUMENTS.get(name, lambda _: None)(parser)
    options = parser.parse_intermixed_args(arguments)
    load_config(*read_arguments(options))  # refuses bad input before torch is imported, which takes seconds
    with imports_uncollected():
        module = importlib.import_module(f"benchmarks.{COMMANDS[name][0]}")
        from benchmarks.measure import session
    return session.run(module.run, name, options)


if __name__ == "__main__":
    run_process(main, at_sigterm=True)
