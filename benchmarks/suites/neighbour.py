"""Time training on two CPU cores beside another program, and the cost of brief waiting without one.

The other program multiplies matrices on one of the two cores. A run then computes with one thread, and the
threads of a step spin only for a moment before they sleep (see `pipeline/process/threads.py`). `--spinning`
adds the defaults of torch and OpenMP: a thread for each core, which spins for milliseconds. Every run is a
new process: OpenMP reads its variables once. The runs take turns, so that a round compares them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.measure import cells
from benchmarks.measure.cores import pinned
from benchmarks.measure.options import merge
from benchmarks.measure.session import Session
from benchmarks.measure.started_run import start
from benchmarks.measure.timing import left_at_this_pace
from benchmarks.publish.records import Baseline, Spread
from pipeline.errors import UserError
from pipeline.process.interrupt import keep_results

ALONE, BESIDE, SPINNING = "alone", "beside a busy process", "alone, threads spin"
BESIDE_SPINNING = "beside a busy process, two threads spin"
_BASELINES = {BESIDE: ALONE, SPINNING: ALONE, BESIDE_SPINNING: ALONE}
_SPIN = {"GOMP_SPINCOUNT": "300000"}  # GNU OpenMP's own default
_VARIABLES = {SPINNING: _SPIN, BESIDE_SPINNING: {**_SPIN, "OMP_NUM_THREADS": "2"}}
_SHORT = (
    "runtime.device=cpu",
    "duration=4ep",
    "log.explain=false",
    "log.report=false",
    "log.tensorboard=false",
)
_QUICK_DURATION = "duration=12st"
_NUM_CORES = 2
_MULTIPLY = """
import os, numpy
os.sched_setaffinity(0, {core})
a = numpy.ones((512, 512), numpy.float32)
print("busy", flush=True)
while True:
    a @ a
"""


@contextmanager
def busy_neighbour(core: int) -> Iterator[None]:
    """Multiply matrices in another process, on one core, within the context."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-c", _MULTIPLY.replace("{core}", f"{{{core}}}")]
    environment = {**os.environ, **one_thread}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def run(session: Session) -> None:
    if session.on_gpu:
        raise UserError("neighbour: times training on the CPU; add runtime.device=cpu")
    cores = sorted(os.sched_getaffinity(0))[:_NUM_CORES]
    if len(cores) < _NUM_CORES:
        raise UserError(f"neighbour: needs {_NUM_CORES} CPU cores, and this process may use {len(cores)}")
    variants = [ALONE, BESIDE, *([SPINNING, BESIDE_SPINNING] if session.options.spinning else [])]
    rounds = 1 if session.quick else session.options.pairs
    rates: dict[str, list[float]] = {variant: [] for variant in variants}
    try:
        with pinned(cores):
            turns = [(number, variant) for number in range(1, rounds + 1) for variant in variants]
            began = time.perf_counter()
            for done, (number, variant) in enumerate(turns):
                place = f"{variant}, round {number} of {rounds}"
                session.show(f"{place}{left_at_this_pace(began, done, len(turns))}")
                rates[variant].append(_rate(session, variant, cores[0], place))
                keep_results()
    finally:  # what was measured before Ctrl-C is kept
        _record(session, rates, rounds)


def _rate(session: Session, variant: str, core: int, place: str) -> float:
    """Return the images per second of a run, and print them with its place in the benchmark."""
    short = merge(_SHORT, [_QUICK_DURATION, "log.log_every=4st"] if session.quick else [])
    overrides, recipe = merge(short, session.overrides), str(Path(session.recipe).resolve())
    variables = _VARIABLES.get(variant, {})
    if variant in (BESIDE, BESIDE_SPINNING):
        with busy_neighbour(core):
            started = start(recipe, overrides, None, **variables)
    else:
        started = start(recipe, overrides, None, **variables)
    rate = started.result.images_per_sec.median
    if rate is None:
        raise UserError("duration: the run ends before its speed is steady; give more steps")
    session.say(f"{place}: {rate:,.0f} img/s, CPU threads: {started.cpu_threads}")
    if variant in (ALONE, SPINNING) and started.cpu_threads == 1:
        session.say(
            f"warning: {variant}, but with one thread: other programs use the cores, so end them first"
        )
    return rate


def _record(session: Session, rates: dict[str, list[float]], planned: int) -> None:
    """Keep a record of every variant that has been measured, compared with that alone of the same round."""
    config = session.config(*_SHORT)
    for variant, measured in rates.items():
        if not measured:
            continue
        baseline, other = None, _BASELINES.get(variant)
        if other is not None:
            ratios = [rate / base for rate, base in zip(measured, rates[other], strict=False)]
            baseline = Baseline(variant=other, images_per_sec=median(rates[other]), ratio=Spread.of(ratios))
        rate = Spread.of(measured)
        session.record(
            *("neighbour", variant, config, None, baseline),
            images_per_sec=rate,
            step_ms=1e3 * config.data.batch_size / rate.median,
            planned=planned if rate.n < planned else None,
        )
        if baseline is not None:
            session.say(f"{variant}: {cells.comparison(baseline)}")
    session.print_tables()
    session.records.clear()  # printed
