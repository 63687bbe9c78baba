"""Declares the arguments of each benchmark. Imports no torch: help and errors in them appear at once."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure.options import listed, whole_number
from benchmarks.scaling.variants import EXTRA

WITH_WORKERS = "torchvision"
ON_SHARDS = "dali-shards"  # `dali` on the same images in tar files
LOADERS = ("dali", ON_SHARDS, "dali-naive", "fused", "airbench", WITH_WORKERS)
# decoders of `decoders`: JPEG engines of the GPU, CUDA, seven tenths on the engines, CPU, and CPU and GPU
DECODERS = ("engines", "cuda", "mixed", "cpu", "both")
# options of `step`: the key, and its values on a GPU and on the CPU
AXES = {
    "models": ("model.name", None, None),
    "precisions": ("precision.mode", ("fp16", "bf16", "fp32"), ("bf16", "fp32")),
    "layouts": ("runtime.channels_last", ("true", "false"), ("true", "false")),
    "modes": ("compile.mode", ("none", "default", "graph", "reduce-overhead"), ("none", "default")),
    "batch_sizes": ("data.batch_size", ("128", "512", "1024", "2048"), ("32", "128")),
}
END_TO_END_BATCH_SIZES = (512, 1024)
OPS = (  # each a module in benchmarks/kernels
    *("augment", "epoch_draws", "batch_norm_act", "dual_batch_norm_act", "pool_norm_act"),
    *("conv_pool_norm_act", "norm_relu_pool", "norm_act_inference"),
    *("label_smoothing_cross_entropy", "muon", "stem_conv", "stem_conv_norm_act", "whitening_stem"),
)
SAVING_EPOCHS, RUNS, ROUNDS, STARTS, PAIRS = 4, 10, 3, 5, 5
PEER_RUNS, BLOCKS = 5, 4  # of time-to-accuracy
PEER_NAMES, SEEDS = ("torchvision", "timm"), 3  # of peers


def _loaders(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--batch-sizes",
        type=listed(int),
        metavar="N,N,…",
        help="default: 256 to 4096; 256,512 for streamed folders",
    )
    parser.add_argument(
        "--loaders",
        type=listed(str, LOADERS),
        metavar="NAME,…",
        help=f"of {','.join(LOADERS)} (default: all that run here)",
    )
    parser.add_argument(
        "--shards",
        type=Path,
        metavar="DIR",
        help=f"folder of tar files for {ON_SHARDS}; the class folders of data.root are packed into it if it "
        "holds none",
    )


def _decoders(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--decoders",
        type=listed(str, DECODERS),
        metavar="NAME,…",
        help=f"of {','.join(DECODERS)} (default: all that run here)",
    )
    parser.add_argument(
        "--cores", type=listed(whole_number(1)), metavar="N,N,…", help="CPU cores to use (default: 4,8,16)"
    )
    parser.add_argument(
        "--gpu-shares",
        type=listed(_share),
        metavar="F,F,…",
        help="values of data.gpu_share for `both` (default: 0.35)",
    )
    parser.add_argument("--alone", action="store_true", help="loaders alone, without the training step")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="add the records of each finished number of cores to this file; the same command later measures "
        "only those that are missing",
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ArgumentTypeError(f"{text!r} is no fraction from 0 to 1; write them as 0.2,0.4")
    return share


def _step(parser: ArgumentParser) -> None:
    for name, (key, on_gpu, on_cpu) in AXES.items():
        default = (
            f"{','.join(on_gpu)}; on the CPU {','.join(on_cpu)}" if on_gpu and on_cpu else "the recipe's"
        )
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=listed(),
            metavar="VALUE,…",
            help=f"values of {key} (default: {default})",
        )
    parser.add_argument(
        "--full",
        action="store_true",
        help="every combination, instead of the recipe with one key changed at a time",
    )


def _end_to_end(parser: ArgumentParser) -> None:
    sizes = ",".join(map(str, END_TO_END_BATCH_SIZES))
    parser.add_argument(
        "--batch-sizes", type=listed(int), metavar="N,N,…", help=f"default: {sizes}; on the CPU the recipe's"
    )
    parser.add_argument(
        "--loaders",
        type=listed(),
        metavar="NAME,…",
        help="of data.loader (default: dali, and on a GPU fused; for streamed folders dali and reference)",
    )


def _kernels(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--ops", type=listed(str, OPS), metavar="NAME,…", help=f"of {','.join(OPS)} (default: all)"
    )


def _ablation(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--epochs",
        type=int,
        default=0,
        metavar="N",
        help="train every cumulative variant for N epochs, for its accuracy (default: 0)",
    )
    parser.add_argument(
        "--seeds", type=listed(int), default=[0, 1, 2], metavar="N,N,…", help="of these runs (default: 0,1,2)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="of these runs at a time (default: 1); their speed is not used"
    )


def _startup(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--starts",
        type=int,
        default=STARTS,
        metavar="N",
        help=f"starts with a cold compile cache, and as many with a warm one (default: {STARTS})",
    )
    parser.add_argument(
        "--whole", action="store_true", help="time whole runs of the recipe, with pictures and report"
    )


def _neighbour(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--pairs",
        type=int,
        default=PAIRS,
        metavar="N",
        help=f"runs alone, and as many beside a busy process (default: {PAIRS})",
    )
    parser.add_argument(
        "--spinning", action="store_true", help="both also as torch and OpenMP do it: all threads, spinning"
    )


def _saving(parser: ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, help=f"epochs of a window (default: {SAVING_EPOCHS})")
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder of the checkpoints, which are removed at the end (default: log.dir)",
    )


def _time_to_accuracy(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, metavar="N", help=f"seeds, from `seed` on (default: {RUNS})")
    parser.add_argument(
        "--target",
        type=float,
        metavar="PERCENT",
        help="test that the mean test accuracy is above this, such as 94; default: no test",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="run this program of others too, such as airbench=airbench94_muon.py of a checkout of its "
        "repository; may be given several times",
    )
    parser.add_argument(
        "--peer-runs", type=int, metavar="N", help=f"timed runs of each peer (default: {PEER_RUNS})"
    )
    parser.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help=f"with --peer, cut the runs into blocks, ours and theirs in turn (default: {BLOCKS})",
    )
    parser.add_argument(
        "--waits",
        action="store_true",
        help="after the runs, start this command twice more for one run, with cold and with warm compile "
        "caches, and tell the seconds to the first trained network",
    )
    parser.add_argument("--data", metavar="NAME", help="name of the images of a folder, such as CIFAR-10")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="after the runs, list the GPU's kernels in a step and in the evaluation by their share",
    )


def _peers(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"run the training script of {' or '.join(PEER_NAMES)} too, from the folder of its train.py "
        "in a checkout of its repository; may be given several times",
    )
    parser.add_argument(
        "--peer-flags",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="further options of this program, which win over those that follow from CONFIG",
    )
    parser.add_argument(
        "--epochs",
        type=whole_number(2),
        required=True,
        metavar="N",
        help="epochs of each run, 2 or more; the first is not timed",
    )
    _runs_of_peers(parser)


def _runs_of_peers(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=whole_number(1),
        default=SEEDS,
        metavar="N",
        help=f"runs of each program (default: {SEEDS})",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="processes that load images for the others (default: one a CPU core)",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="name of the images (default: that in about.json of their folder, or that of the folder)",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="add each finished run to this file; the same command later runs only those that are missing",
    )
    parser.add_argument(
        "--at-least",
        type=float,
        metavar="FACTOR",
        help="exit with 1 unless our training is this many times as fast as that of each other program, and "
        "our accuracy is not lower than theirs by more than two standard errors",
    )


def _scaling(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=listed(int),
        metavar="N,N,…",
        help="with 2 among them, larger ones are predicted first, those above the visible GPUs only "
        "predicted (default: 1 and all GPUs; on the CPU 1,2)",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"process groups of each size, in turn (default: {ROUNDS})"
    )
    parser.add_argument(
        "--loaders", type=listed(), default=["dali"], metavar="NAME,…", help="of data.loader (default: dali)"
    )
    parser.add_argument(
        "--averaging",
        type=listed(str, EXTRA),
        default=[],
        metavar="NAME,…",
        help="a further row of weak scaling: ddp, as accelerate prepares it (default: none)",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="PERCENT",
        help="of N times one process, that weak scaling is to reach on N, such as 95; default: none",
    )


ARGUMENTS: dict[str, Callable[[ArgumentParser], None]] = {  # by the name of the benchmark; `bench` has none
    "loaders": _loaders,
    "decoders": _decoders,
    "step": _step,
    "end_to_end": _end_to_end,
    "kernels": _kernels,
    "ablation": _ablation,
    "startup": _startup,
    "neighbour": _neighbour,
    "saving": _saving,
    "time-to-accuracy": _time_to_accuracy,
    "peers": _peers,
    "scaling": _scaling,
}
