"""Time what a user waits for: the parts of a run from the command to its end, with cold and warm caches.

Every run is a new process, by launch.sh if this Python is that of its .venv, otherwise by `python -m
pipeline.train`, the module that launch.sh calls. In each round, one run has a new compile cache (cold), the
next one the same cache (warm), and for a folder of small images a third one decodes them anew (cold data
cache). The runs are of 20 steps, without pictures and report; with `--whole` they are those of the recipe.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.measure import cells
from benchmarks.measure.options import merge
from benchmarks.measure.session import Session
from benchmarks.measure.started_run import StartedRun, has_launcher, start
from benchmarks.measure.timing import left_at_this_pace
from pipeline.config import Config, FolderData
from pipeline.process.interrupt import keep_results

_SHORT = (
    "duration=20st",
    "log.eval_every=20st",
    "log.checkpoint_every=20st",
    "log.explain=false",
    "log.report=false",
    "log.tensorboard=false",
)
COLD, WARM, COLD_DATA = "cold compile cache", "warm caches", "cold data cache"


def run(session: Session) -> None:
    short = () if session.options.whole else _SHORT
    config, overrides = session.config(*short), merge(short, session.overrides)
    rounds = 1 if session.quick else session.options.starts
    runs: dict[str, list[StartedRun]] = {}
    kinds = _kinds(config, session.quick)
    lefts = _lefts(rounds * len(kinds))
    try:
        for number in range(1, rounds + 1):
            _start_round(session, overrides, kinds, f"{number} of {rounds}", runs, lefts)
    finally:  # what was measured before Ctrl-C is kept
        for kind, started in runs.items():
            _record(session, config, kind, started, rounds)
        session.print_tables()
        session.records.clear()  # printed


def _lefts(total: int) -> Iterator[str]:
    """Yield the time left before each start."""
    began = time.perf_counter()
    for done in range(total):
        yield left_at_this_pace(began, done, total)


def _kinds(config: Config, quick: bool) -> list[str]:
    if quick:
        return [COLD]
    decodes = isinstance(config.data, FolderData) and not config.probably_streamed
    return [COLD, WARM, *([COLD_DATA] if decodes else [])]


def _start_round(
    session: Session,
    overrides: list[str],
    kinds: list[str],
    number: str,
    runs: dict[str, list[StartedRun]],
    lefts: Iterator[str],
) -> None:
    """Start a run of each kind, in turn, with a compile cache of their own."""
    recipe = str(Path(session.recipe).resolve())
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as data:
        for kind in kinds:
            session.show(f"{kind}, start {number}{next(lefts)}")
            extra = [f"data.cache_dir={data}"] if kind == COLD_DATA else []
            started = start(recipe, merge(overrides, extra), Path(cache))
            runs.setdefault(kind, []).append(started)
            keep_results()
            session.say(f"{kind}, start {number}: {_describe(started)}")


def _describe(started: StartedRun) -> str:
    return f"{started.whole_s:.1f} s ({cells.parts(started.timeline)})"


def _record(session: Session, config: Config, kind: str, runs: list[StartedRun], planned: int) -> None:
    launcher = "launch.sh" if has_launcher() else "pipeline.train"
    whole = ", whole run" if session.options.whole else ""
    first_steps = [run.result.first_step_s for run in runs if run.result.first_step_s is not None]
    names = dict.fromkeys(name for run in runs for name in run.timeline)
    session.record(
        "startup",
        f"{kind}, {launcher}{whole}",
        config,
        None,
        first_step_s=median(first_steps),
        first_step_n=len(runs),
        whole_s=median(run.whole_s for run in runs),
        planned=planned if len(runs) < planned else None,
        timeline={name: median(run.timeline.get(name, 0.0) for run in runs) for name in names},
    )
