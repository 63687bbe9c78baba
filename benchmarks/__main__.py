"""`python -m benchmarks [NAME] [CONFIG] [key=value …]`: time a config, or one part of it in many variants."""

import argparse
import difflib
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands.exit_code import exit_code_of
from pipeline.errors import EXIT_FAILURE, UserError
from pipeline.process.cache_dirs import use_cache_folder

BENCHMARKS = {
    "bench": "one config: loader, step, both together, and the bottleneck (the default)",
    "loaders": "loaders alone, by batch size",
    "step": "the step alone: model, precision, layout, compile mode, batch size",
    "end_to_end": "loader and step together, beside the step on synthetic images and a plain training loop",
    "kernels": "Triton kernels beside torch.compile of their references",
    "ablation": "from a plain fp32 recipe to the full one, one switch at a time: speed, and accuracy with --epochs",
    "startup": "seconds from the command to the first optimizer step, with a cold and a warm compile cache",
    "saving": "training with a checkpoint an epoch, beside training without",
    "scaling": "weak and strong scaling over the GPUs of this host, beside one of them",
}
OTHERS = {
    "make-folder": "make a folder of large JPEGs, mosaics of small images, for the loaders of streamed folders",
    "sweep": "train a recipe with lists of overrides, as a file in configs/sweeps says",
    "recipes": "make records of the shipped recipes out of finished runs of them",
    "readme": "bring tables, figures and the prices in the recipes up to date with the records",
}


MODULES = {
    **{
        name: f"suites.{name}"
        for name in ("bench", "loaders", "step", "end_to_end", "ablation", "startup", "saving")
    },
    "kernels": "kernels.suite",
    "scaling": "scaling.scaling",
    "make-folder": "suites.make_folder",
    "sweep": "sweep.run",
    "recipes": "publish.recipes",
    "readme": "publish.readme",
}


def _help() -> str:
    names = "\n".join(f"  {name:<12}{summary}" for name, summary in (BENCHMARKS | OTHERS).items())
    return (
        f"{__doc__}\n\nNAME is one of:\n{names}\n\n`python -m benchmarks NAME -h` lists the arguments of one."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; the exit code is 2 for bad input, 1 where a measurement cannot be trusted or a run failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    use_cache_folder()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if arguments and arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    try:
        return exit_code_of(lambda: _run(arguments))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_FAILURE


def _run(arguments: list[str]) -> int:
    name = _take_name(arguments)
    module = importlib.import_module(f"benchmarks.{MODULES[name]}")
    if name in OTHERS:
        return module.main(arguments)
    return _measure(name, module, arguments)


def _take_name(arguments: list[str]) -> str:
    """Take the benchmark's name off the arguments; `bench` where they begin with a recipe, a key or an option."""
    known = BENCHMARKS | OTHERS
    if arguments and arguments[0] in known:
        return arguments.pop(0)
    first = arguments[0] if arguments else ""
    if (
        first.replace("-", "").replace("_", "").isalpha()
        and not first.startswith("-")
        and not Path(first).exists()
    ):
        near = difflib.get_close_matches(first, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"benchmarks: {', '.join(known)}"
        raise UserError(f"{first}: neither a benchmark nor a recipe; {hint}")
    return "bench"


def _measure(name: str, module: object, arguments: list[str]) -> int:
    from benchmarks.measure import options, session

    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=module.__doc__)
    options.add_arguments(parser)
    module.add_arguments(parser)  # type: ignore[attr-defined]
    session.run(module.run, name, parser.parse_intermixed_args(arguments))  # type: ignore[attr-defined]
    return 0


if __name__ == "__main__":
    sys.exit(main())
