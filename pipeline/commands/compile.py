"""Compiles the step of a recipe before any training; carries compiled code to other machines."""

import argparse
import os
import tempfile
import time
import zipfile
from pathlib import Path

from pipeline.commands.arguments import add_overrides, check_output_file, print_warnings
from pipeline.config import Config, check_compiles, load_config
from pipeline.errors import UserError
from pipeline.process.cache_dirs import COMPILE_CACHES, make_cache_folder
from pipeline.process.fast_import import imports_uncollected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="recipe, such as configs/cifar10_resnet18.yaml")
    add_overrides(parser, "keys that replace those of the recipe, such as data.batch_size=1024")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="compile anew, and write the compiled code to a file"
    )
    parser.add_argument(
        "--load",
        type=Path,
        metavar="FILE",
        help="put the code of such a file, which must be one that you trust, into this machine's cache",
    )


def run(arguments: argparse.Namespace) -> int:
    if (arguments.config is None) == (arguments.load is None) or (arguments.load and arguments.save):
        raise UserError("compile: give either CONFIG, perhaps with --save FILE, or --load FILE")
    make_cache_folder()
    if arguments.load is not None:
        _load(arguments.load)
        return 0
    config = load_config(arguments.config, arguments.overrides)
    print_warnings(config)
    if arguments.save is not None:
        check_output_file(arguments.save, "--save")
    if config.runtime.device == "cpu" or config.compile.mode == "none":  # known before torch is imported
        check_compiles(config.compile, "cpu")
    print(f"compiling {arguments.config}, which may take minutes …", flush=True)
    if arguments.save is None:
        print(f"compiled in {_compile(config):.1f} s; runs of this recipe find the code in the cache")
        return 0
    with tempfile.TemporaryDirectory() as folder:  # so that the file holds this recipe's code, and all of it
        for name in COMPILE_CACHES:
            os.environ[name] = str(Path(folder, name.lower()))
            Path(os.environ[name]).mkdir()
        seconds = _compile(config)
        from pipeline.training.compile_cache import save_compiled

        size = save_compiled(arguments.save)
    print(f"{arguments.save}: {size / 1e6:.1f} MB, compiled in {seconds:.1f} s; load it with compile --load")
    return 0


def _load(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"--load: {file}: no such file; give a file that `compile CONFIG --save` has made")
    if not zipfile.is_zipfile(file):
        remedy = "give a file that `compile CONFIG --save` has made"
        raise UserError(f"--load: {file} cannot be read (it is no zip file); {remedy}")
    with imports_uncollected():
        from pipeline.training.compile_cache import load_compiled

    load_compiled(file)
    print(f"{file}: its code is in the cache now")


def _compile(config: Config) -> float:
    """Compile, and return the seconds that it took, with importing the compiler."""
    began = time.perf_counter()
    with imports_uncollected():
        from pipeline.distributed.processes import connect, pick_device
        from pipeline.training.build import prepare_compiler, set_backends
        from pipeline.training.compile_cache import compile_step
        from pipeline.training.faults import explained
        from pipeline.training.trainer import side_stream

        prepare_compiler(config.compile, pick_device(config))
    set_backends(config)
    processes = connect(config)
    with side_stream(processes.device), explained(config, processes.shard.world_size):
        compile_step(config, processes)
    return time.perf_counter() - began
