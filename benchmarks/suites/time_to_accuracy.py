"""Train a recipe with many seeds in one process, and test whether its mean accuracy reaches a target.

The step is compiled and captured once, and warmed up on random images. For each seed all state is reset. The
time of a run is that from the first work on the training images (a whitening layer included), which are on
the device as uint8, to the last view of the test images. Nothing is logged, evaluated or saved in between.

After the runs come the operations and the bytes of a run, and the least time of both on this device. With
`--kernels` the kernels of a step and of the evaluation are listed too.

With `--peer`, programs of others train in turn with ours, block by block, on the same machine. With `--waits`
two more processes show what a user waits for a trained network, with cold and with warm caches.

Exit code: 1 if a mean accuracy above the target is not shown (one-sided t-test, p ≥ .01) or if a peer failed,
130 after Ctrl-C. Both keep the runs done so far.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.arguments import BLOCKS, PEER_RUNS, RUNS
from benchmarks.measure.cold_and_warm import Waits, measure_waits
from benchmarks.measure.machine import (
    count_compiled,
    gpu_state,
    hash_of_sources,
    seconds_since_start,
)
from benchmarks.measure.run_floor import floor_of
from benchmarks.measure.session import Session
from benchmarks.measure.t_tests import p_not_above
from benchmarks.measure.whole_run import WholeRunRig, without_old_garbage
from benchmarks.measure.whole_run_report import is_shown, record_peers, report
from benchmarks.peers.programs import PeerProgram, prepare_peers, split_peers
from benchmarks.publish.whole_runs import GpuState, TimedRun, WholeRuns
from pipeline.config import Config
from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, TrainingError, UserError
from pipeline.process.interrupt import keep_results
from pipeline.profiling.roofline import measure_best

_QUICK_RUNS = 2
_QUICK_DURATION = "duration=5st"


@dataclass
class _Progress:
    """The runs done so far, and what is known of the process around them.

    Attributes:
        planned: number of runs that were asked for.
        planned_of_peers: the same of each peer.
        target: a fraction of 1, or None.
        started: of the process's work on this benchmark, in seconds since 1970.
        wait_s: seconds from the start of the process to the end of the first run.
        first_began: start of the first run, in seconds of `time.perf_counter`.
        waits: of two new processes, with `--waits`.
        failure: of a peer, or of one of these processes; the runs until then are kept.
    """

    planned: int
    planned_of_peers: int
    target: float | None
    started: float = field(default_factory=time.time)
    runs: list[TimedRun] = field(default_factory=list)
    wait_s: float = 0.0
    first_began: float = 0.0
    gpu_before: GpuState | None = None
    is_stopped: bool = False
    waits: Waits | None = None
    failure: TrainingError | None = None

    @property
    def left_s(self) -> float:
        """Estimated seconds until the last run ends, resetting included."""
        elapsed = time.perf_counter() - self.first_began
        return elapsed / len(self.runs) * (self.planned - len(self.runs))


def run(session: Session) -> int:
    """Time the runs.

    Returns:
        The exit code.
    """
    progress = _check_options(session)
    rig, peers = None, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = split_peers(session.options.peer, _name(session))
            peers = prepare_peers(files, session.splits(_config(session)), Path(folder))
            rig = _build(session)
            with without_old_garbage():
                _train(session, rig, progress, peers)
            if session.options.waits and progress.failure is None:
                _wait(session, progress)
        except KeyboardInterrupt:
            progress.is_stopped = True
        finally:
            for peer in peers:
                peer.close()
    if rig is None or not progress.runs:
        if progress.failure is not None:
            raise progress.failure
        session.say("stopped before the end of the first run")
        return EXIT_INTERRUPTED
    result = _summarise(session, progress, rig)
    report(session, result)
    rig.check()
    session.record("time_to_accuracy", _name(session), _config(session), None, whole_runs=result)
    record_peers(session, result, peers, progress.planned_of_peers, _config(session))
    session.print_tables()
    if progress.failure is not None:
        raise progress.failure
    if progress.is_stopped:
        session.say(f"stopped after {len(result.runs)} of {result.planned} runs")
        return EXIT_INTERRUPTED
    return 0 if result.target is None or is_shown(result.p) else EXIT_FAILURE


def _name(session: Session) -> str:
    """Return the name of the recipe in the records."""
    return Path(session.recipe).stem


# --- before the runs ----------------------------------------------------------------------------------------


def _check_options(session: Session) -> _Progress:
    """Check the options and the config.

    Raises:
        UserError: one of them cannot be used.
    """
    options, config = session.options, _config(session)
    runs = _QUICK_RUNS if options.runs is None and session.quick else options.runs
    runs = RUNS if runs is None else runs
    for name in ("windows", "steps"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: whole runs are timed here; leave it out, and give --runs")
    if not options.peer and (options.peer_runs is not None or options.blocks is not None):
        raise UserError("--peer-runs, --blocks: there is no peer; give --peer NAME=FILE, or leave them out")
    if options.peer_runs == 1:
        raise UserError("--peer-runs: one run has no σ to compare with; give 2 or more")
    split_peers(options.peer, _name(session))
    session.check_images_have_a_name(config)
    of_peers = options.peer_runs or PEER_RUNS
    if options.target is None:
        return _checked(session, config, _Progress(runs, of_peers, None))
    if not 1 < options.target < 100:
        raise UserError(f"--target: {options.target:g} is no accuracy in per cent; give one such as 94")
    if runs < 2:
        raise UserError("--runs: one run has no σ to test with; give 2 or more, or leave out --target")
    return _checked(session, config, _Progress(runs, of_peers, options.target / 100))


def _checked(session: Session, config: Config, progress: _Progress) -> _Progress:
    world_size = session.processes.shard.world_size
    if world_size > 1:
        raise UserError(
            f"time-to-accuracy: runs in one process, not in {world_size}; start it without accelerate launch"
        )
    if session.on_gpu and config.data.loader != "fused":
        raise UserError(
            f"data.loader: {config.data.loader} does not begin with all images on the GPU; "
            "give data.loader=fused"
        )
    _check_kernels(session)
    if session.streams(config):
        raise UserError(
            "data.root: these images are streamed from their files, but this benchmark begins with all "
            "images in memory; give smaller images, or raise data.cache_below"
        )
    return progress


def _check_kernels(session: Session) -> None:
    if session.options.kernels and not session.on_gpu:
        raise UserError("--kernels: these runs are on the CPU, which has no kernels to list; leave it out")


def _config(session: Session, *overrides: str) -> Config:
    """Return the config of the runs; a smoke test takes few steps, unless the user gives a duration."""
    short = session.quick and not any(item.startswith("duration=") for item in session.overrides)
    return session.config(*([_QUICK_DURATION] * short), *overrides)


def _build(session: Session) -> WholeRunRig:
    config = _config(session)
    session.show("building, compiling and warming up on random images")
    return WholeRunRig(config, session.splits(config), session.processes)


# --- the runs -----------------------------------------------------------------------------------------------


def _train(session: Session, rig: WholeRunRig, progress: _Progress, peers: Sequence[PeerProgram]) -> None:
    first_seed = _config(session).seed
    progress.gpu_before = gpu_state(session.device)
    progress.first_began = time.perf_counter()
    options = session.options
    blocks = (options.blocks or BLOCKS) if peers else 1
    of_peers = _divide(progress.planned_of_peers, blocks)
    for block, of_peer in zip(_divide(progress.planned, blocks), of_peers, strict=True):
        for number in block:
            session.show(f"round {number + 1}/{progress.planned}")
            progress.runs.append(rig.train(_config(session, f"seed={first_seed + number}")))
            keep_results()
            if number == 0:
                progress.wait_s = seconds_since_start()
            _say_run(session, progress)
        for peer in peers if of_peer else ():
            session.show(
                f"{peer.name}: run {of_peer[0] + 1} of {of_peers[-1].stop}, compiling before the first"
            )
            try:
                peer.take(len(of_peer))
            except TrainingError as failure:
                progress.failure = failure
                return
            for run in peer.runs[-len(of_peer) :]:
                session.say(f"{peer.name}: {_figures(run)}")


def _wait(session: Session, progress: _Progress) -> None:
    """Measure what a user waits for, in two processes of their own."""
    session.show("starting twice more: with cold caches, then with warm ones")
    try:
        progress.waits = measure_waits(session.recipe, session.overrides)
    except TrainingError as failure:
        progress.failure = TrainingError(f"--waits: {failure}")


def _divide(count: int, blocks: int) -> list[range]:
    """Return the numbers from 0 as ranges of about the same length.

    >>> _divide(5, 2), _divide(1, 2)
    ([range(0, 2), range(2, 5)], [range(0, 0), range(0, 1)])
    """
    return [range(count * block // blocks, count * (block + 1) // blocks) for block in range(blocks)]


def _say_run(session: Session, progress: _Progress) -> None:
    run, number = progress.runs[-1], len(progress.runs)
    left = f"; about {_duration(progress.left_s)} left" if number < progress.planned else ""
    session.say(f"run {number} of {progress.planned}, seed {run.seed}: {_figures(run)}{left}")


def _figures(run: TimedRun) -> str:
    accuracies = [f"{accuracy:.2%} {label}" for label, accuracy in run.accuracies.items()]
    return ", ".join([*accuracies, f"{run.seconds:.3f} s"])


def _duration(seconds: float) -> str:
    """Return whole seconds, or minutes from two minutes on.

    >>> _duration(7.6), _duration(185)
    ('8 s', '3 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


# --- after the runs -----------------------------------------------------------------------------------------


def _summarise(session: Session, progress: _Progress, rig: WholeRunRig) -> WholeRuns:
    """Return the runs with their test, the floor, and with `--kernels` the kernels.

    The accuracy with the most views, of the average weights if there are any, is compared with the target.
    """
    figure = list(progress.runs[0].accuracies)[-1]
    accuracies = [run.accuracies[figure] for run in progress.runs]
    return WholeRuns(
        figure=figure,
        target=progress.target,
        p=None if progress.target is None else p_not_above(accuracies, progress.target),
        runs=tuple(progress.runs),
        planned=progress.planned,
        wait_s=progress.wait_s,
        compiled=count_compiled(progress.started),
        source_hash=hash_of_sources(Path(session.recipe)),
        gpu_before=progress.gpu_before,
        gpu_after=gpu_state(session.device),
        floor=floor_of(rig.trainer, measure_best(session.device)),
        kernels=rig.profile() if session.options.kernels else (),
        cold_wait_s=progress.waits.cold_s if progress.waits else None,
        warm_wait_s=progress.waits.warm_s if progress.waits else None,
    )
