"""Draws Grad-CAM maps of misclassified test images, of chosen test images or of files, as one picture."""

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_ema, add_run, check_output_file, check_run, count, numbers
from pipeline.process.fast_import import imports_uncollected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--count", type=count, default=10, metavar="N", help="the N most confident mistakes (default: 10)"
    )
    images.add_argument(
        "--files", nargs="+", type=Path, default=(), metavar="FILE", help="these image files, of any size"
    )
    images.add_argument(
        "--indices",
        type=numbers,
        default=(),
        metavar="I,J",
        help="the test images with these indices, such as 3,17",
    )
    _add_options(parser)
    add_ema(parser)
    where = "the picture (default: explained.png in the run folder, or NAME-explained.png here)"
    parser.add_argument("--output", type=Path, metavar="PNG", help=where)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how to explain."""
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="layer to explain, such as stages.1 (default: the last layer before pooling)",
    )
    parser.add_argument(
        "--class",
        dest="target",
        default="predicted",
        metavar="predicted|true|NAME|INDEX",
        help="class to explain (default: the predicted class of each image)",
    )
    parser.add_argument(
        "--method",
        default="gradcam",
        metavar="METHOD",
        help="gradcam, gradcam++, xgradcam, hirescam, layercam, eigengradcam, eigencam or scorecam "
        "(default: gradcam)",
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="also measure each map by deletion and insertion (ROAD): whether the class depends on it",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is not None:
        check_output_file(arguments.output, "--output")
    check_run(arguments)
    with imports_uncollected():
        from pipeline.explain.explain_run import explain_and_draw

    picture, trained, explained = explain_and_draw(
        arguments.run,
        arguments.checkpoint,
        arguments.count,
        arguments.overrides,
        files=arguments.files,
        indices=arguments.indices,
        layer=arguments.layer,
        method=arguments.method,
        target=arguments.target,
        output=arguments.output,
        ema=arguments.ema,
    )
    if arguments.score:
        from pipeline.explain.faithfulness import score_maps

        print(score_maps(trained, explained).describe(explained.sources))
    print(picture)
    return 0
