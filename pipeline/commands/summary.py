"""Prints the layers of a recipe's network with shapes, parameters, memory and FLOPs, and draws its graph."""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.commands.arguments import add_recipe, check_output_file, count, print_warnings
from pipeline.config import load_config, name_of, path_of
from pipeline.process.fast_import import imports_uncollected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--depth",
        type=count,
        metavar="N",
        help="levels of modules to show (default: as many as fit a screen)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="PNG, SVG or PDF (default: architecture-CONFIG.png in log.dir)",
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    print_warnings(config)
    usual = f"architecture-{name_of(arguments.config)}.png"
    picture = arguments.picture or path_of("log.dir", config.log.dir) / usual
    check_output_file(picture, "--picture" if arguments.picture else "log.dir")
    with imports_uncollected():
        from pipeline.models.freeze import describe_trained, freeze
        from pipeline.profiling.model_graph import draw_architecture
        from pipeline.profiling.model_summary import build_for_summary, print_summary, summarise

    model, shape = build_for_summary(config)
    title = f"{config.model.name} for {shape[0]} × {shape[1]} × {shape[2]} images"
    depth = draw_architecture(model, shape, picture, title, arguments.depth)
    summary = summarise(model, shape, config.data.batch_size, config.precision.mode)
    if config.model.freeze:  # after the layers: their column holds all parameters
        freeze(model, config.model.freeze)
        summary = replace(summary, trained=describe_trained(model))
    print_summary(summary, title, depth)
    print(f"\n{picture}")
    return 0
