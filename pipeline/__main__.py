"""`python -m pipeline COMMAND`: train, look at, and explain runs."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import train
from pipeline.config import check_batches, load_config, reference_table
from pipeline.exit_code import exit_code_of
from pipeline.process.cache_dirs import use_cache_folder

Command = Callable[[argparse.Namespace], int]


def _train(arguments: argparse.Namespace) -> int:
    options = [option for option, given in (("--profile", arguments.profile), ("--dry-run", arguments.dry_run)) if given]
    return train.main([arguments.config, *arguments.overrides, *options])


def _check(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    check_batches(config, arguments.processes)
    if arguments.print_device:
        print(config.runtime.device)
    else:
        print(f"{arguments.config}: valid")
    return 0


def _config_reference(arguments: argparse.Namespace) -> int:
    print(reference_table())
    return 0


def _summary(arguments: argparse.Namespace) -> int:
    from pipeline.profiling.model_graph import draw_architecture
    from pipeline.profiling.model_summary import build_for_summary, print_summary, summarise

    config = load_config(arguments.config, arguments.overrides)
    model, shape = build_for_summary(config)
    picture = arguments.picture or Path(config.log.dir) / f"architecture-{Path(arguments.config).stem}.png"
    title = f"{config.model.name} for {shape[0]} × {shape[1]} × {shape[2]} images"
    depth = draw_architecture(model, shape, picture, title, arguments.depth)
    print_summary(summarise(model, shape, config.data.batch_size, config.precision.mode), title, depth)
    print(f"\n{picture}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from pipeline.atomic_io import read_json
    from pipeline.commands import evaluate_run
    from pipeline.run.console import OTHER_ACCURACIES

    result = evaluate_run(arguments.run, arguments.checkpoint, tuple(arguments.overrides))
    print(f"test accuracy {result.accuracy:.4%} ({result.correct}/{result.seen}), loss {result.loss:.4f}")
    figures = result.figures()
    for key, name in OTHER_ACCURACIES.items():
        if key in figures:
            print(f"{name:13} {figures[key]:.4%}")
    recorded = arguments.run / "result.json"
    if arguments.checkpoint == "last" and recorded.is_file():
        print(f"recorded      {read_json(recorded)['test_accuracy']:.4%}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from pipeline.commands import explain_run

    print(
        explain_run(
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
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from pipeline.report.page import FILE, write_report

    if arguments.refresh:
        from pipeline.finish import refresh

        for run in arguments.runs:
            refresh(run)
    output = arguments.output or (arguments.runs[0] if len(arguments.runs) == 1 else arguments.runs[0].resolve().parent) / FILE
    print(write_report(arguments.runs, output))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from pipeline.predict import predict_run

    how = {"as_json": arguments.json, "ema": arguments.ema}
    return predict_run(arguments.run, arguments.files, arguments.checkpoint, arguments.top, arguments.device, **how)


def _export(arguments: argparse.Namespace) -> int:
    from pipeline.export import export_run

    given = (arguments.run, arguments.format, arguments.checkpoint, arguments.overrides, arguments.output, arguments.input)
    exported = export_run(*given, ema=arguments.ema)
    print(exported.summary)
    print(exported.file)
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 3,17") from None


def _whole(lowest: int, highest: int = 2**20) -> Callable[[str], int]:
    """Reads a whole number; `choices=range(…)` would list all of them where another is given."""

    def read(text: str) -> int:
        if not (text.isdecimal() and len(text) < 10 and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {lowest:,} to {highest:,}")
        return int(text)

    return read


_count = _whole(1)


def _lr_find(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    from pipeline.training.lr_finder import RULE, lr_find

    recipe = Path(arguments.config).stem
    picture = arguments.output or Path(config.log.dir) / f"lr-find-{recipe}.png"
    found = lr_find(config, picture, f"Learning-rate range test: {recipe}", arguments.min, arguments.max, arguments.steps)
    print(
        f"{len(found.rates)} steps, learning rate {found.rates[0]:.2g} to {found.rates[-1]:.2g}"
        + (", where the loss diverged" if found.diverged else "")
        + f"; loss {found.smoothed[0]:.3f}, smallest {found.smoothed.min():.3f} at {found.rates[found.smoothed.argmin()]:.2g}"
    )
    print(f"curve: {picture}")
    if found.suggested is None:
        why = "still falls at the largest rate; try a larger --max" if found.fell else "never fell; try a smaller --min, or more --steps"
        print(f"no suggestion: the loss {why}")
        return 0
    print(f"suggested maximum: {found.suggested:.2g}, {RULE}; it falls fastest at {found.steepest:.2g}")
    same = [word for word in arguments.overrides if not word.startswith("optimizer.lr=")]
    print("use it: " + shlex.join(["./launch.sh", arguments.config, *same, f"optimizer.lr={found.suggested:.2g}"]))
    return 0


def _check_data(arguments: argparse.Namespace) -> int:
    from pipeline.check_data import check_data

    out = arguments.out or Path(arguments.root).expanduser() / ".quickres" / "check"
    return check_data(arguments.root, out, arguments.threads, arguments.overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, work: Command, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(work=work)
        return command

    train.add_arguments(add("train", _train, "train one run on this process alone (several: accelerate launch -m pipeline.train)"))
    check = add("check", _check, "validate a recipe and its overrides")
    train.add_arguments(check)
    check.add_argument("--processes", type=_count, default=1, metavar="N", help="number of processes that the batches must divide by")
    check.add_argument("--print-device", action="store_true", help="print runtime.device only")
    summary = add("summary", _summary, "layers of a recipe's network with shapes, parameters, memory and FLOPs; its graph as a picture")
    train.add_recipe_arguments(summary)
    summary.add_argument("--depth", type=_count, metavar="N", help="levels of modules to open (default: as fit a screen)")
    summary.add_argument("--picture", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: architecture-CONFIG.png in log.dir)")
    find = add("lr-find", _lr_find, "learning-rate range test: a curve as a picture, and a suggested maximum")
    train.add_recipe_arguments(find)
    find.add_argument("--min", type=float, default=1e-4, help="learning rate of the first step (default: 1e-4)")
    find.add_argument("--max", type=float, default=10.0, help="learning rate of the last step (default: 10)")
    find.add_argument("--steps", type=_whole(10, 100_000), default=100, metavar="N", help="steps (default: 100)")
    find.add_argument("--output", type=Path, metavar="PNG", help="the picture (default: lr-find-RECIPE.png in log.dir)")
    add("config-reference", _config_reference, "print every key with type, default and meaning")
    data = add(
        "check-data", _check_data, "decode every image of a folder; list bad files, count classes, draw sizes; exit code 1: some are bad"
    )
    data.add_argument("root", help="as data.root")
    data.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="keys of the data section, such as data.train_list=FILE"
    )
    data.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: ROOT/.quickres/check)")
    data.add_argument("--threads", type=_count, default=os.cpu_count() or 1, metavar="N", help="threads to decode in (default: one a core)")
    _add_run(add("evaluate", _evaluate, "accuracy on the test set of a run's checkpoint"))
    explain = add("explain", _explain, "Grad-CAM maps of misclassified test images, of chosen ones or of files, as one picture")
    _add_run(explain)
    _add_explain(explain)
    predict = add("predict", _predict, "the most probable classes of images")
    _add_run(predict, overrides=False)
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JPEG or PNG files of any size, or folders of them")
    predict.add_argument("--top", type=_count, default=5, metavar="K", help="how many classes of each image (default: 5)")
    predict.add_argument("--json", action="store_true", help="print JSON in place of a table")
    predict.add_argument("--device", choices=("auto", "cpu", "gpu"), help="where to predict (default: as runtime.device says)")
    _add_ema(predict)
    export = add("export", _export, "a run's network as a file for other programs, checked to give the same logits")
    _add_run(export)
    _add_ema(export)
    export.add_argument("--format", required=True, choices=("safetensors", "torch-export", "onnx"), help="kind of file")
    export.add_argument("--output", type=Path, metavar="DIR", help="folder to write in (default: export/FORMAT in the run folder)")
    export.add_argument(
        "--input",
        default="unit",
        choices=("unit", "normalised"),
        help="what the exported network takes: `unit`: RGB from 0 to 1, normalised inside; `normalised`: already normalised. "
        "(default: unit; safetensors holds weights alone, which take normalised images)",
    )
    report = add("report", _report, "one HTML page of a run, or of several side by side, from their folders alone")
    report.add_argument("runs", type=Path, nargs="+", metavar="run", help="run folder, such as runs/latest")
    report.add_argument("--output", type=Path, help="file (default: report.html in the run's folder; for several, beside their folders)")
    report.add_argument("--refresh", action="store_true", help="predict and explain anew first, by the last checkpoint; needs the data set")
    return parser


def _add_run(command: argparse.ArgumentParser, overrides: bool = True) -> None:
    command.add_argument("run", type=Path, help="run folder, such as runs/latest")
    if overrides:
        command.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="keys put over the run's config, such as data.root=DIR"
        )
    command.add_argument("--checkpoint", default="last", metavar="last|best|STEP", help="which checkpoint (default: last)")


def _add_ema(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ema", action="store_true", help="take the moving average of the weights")


def _add_explain(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group()
    what.add_argument("--count", type=_count, default=10, metavar="N", help="the N most confident mistakes (default: 10)")
    what.add_argument("--files", nargs="+", type=Path, default=(), metavar="FILE", help="these image files, of any size")
    what.add_argument("--indices", type=_numbers, default=(), metavar="I,J", help="the test images with these indices, such as 3,17")
    command.add_argument("--layer", metavar="NAME", help="layer to explain, such as stages.1 (default: the last before pooling)")
    command.add_argument(
        "--class",
        dest="target",
        default="predicted",
        metavar="predicted|true|NAME|INDEX",
        help="class to explain (default: the predicted one of each image)",
    )
    command.add_argument(
        "--method",
        default="gradcam",
        metavar="METHOD",
        help="gradcam, gradcam++, xgradcam, hirescam, layercam, eigengradcam, eigencam or scorecam (default: gradcam)",
    )
    _add_ema(command)
    command.add_argument("--output", type=Path, metavar="PNG", help="the picture (default: explained.png in the run folder)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 for bad input."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    use_cache_folder()
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes no more `key=value` after an option
    if not hasattr(arguments, "overrides") or any("=" not in item or item.startswith("-") for item in rest):
        parser.parse_args(argv)  # says what is wrong
    else:
        arguments.overrides = [*arguments.overrides, *rest]
    return exit_code_of(lambda: arguments.work(arguments))


if __name__ == "__main__":
    sys.exit(main())
