"""Draws one HTML page of a run, or of several runs side by side, from their folders alone."""

import argparse
from pathlib import Path

from pipeline.commands.arguments import check_output_file
from pipeline.run.folder import RunFolder, find_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="run folder, such as runs/latest")
    parser.add_argument(
        "--output",
        type=Path,
        help="file (default: report.html in the run folder; for several runs, beside their folders)",
    )
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="first predict and explain again with the last checkpoint; needs the data set",
    )


def run(arguments: argparse.Namespace) -> int:
    runs = arguments.runs
    folder = runs[0] if len(runs) == 1 else runs[0].resolve().parent
    if arguments.output is not None:
        check_output_file(arguments.output, "--output")
    for run in runs:
        find_run(run)
    if arguments.refresh:
        from pipeline.explain.analyse_test_set import refresh

        for run in runs:
            refresh(run)
    from pipeline.report.page import write_report

    print(write_report(runs, arguments.output or RunFolder(folder).report))
    return 0
