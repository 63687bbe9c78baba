"""Prints and records whole trainings: accuracy, time, test and waiting time, ours and those of peers."""

from collections.abc import Sequence

from benchmarks.measure import cells
from benchmarks.measure.machine import hash_of_program
from benchmarks.measure.session import Session
from benchmarks.measure.t_tests import p_not_above
from benchmarks.peers.programs import THEIR_VIEWS, PeerProgram
from benchmarks.publish.whole_runs import GpuState, WholeRuns, mean_and_deviation
from pipeline.config import Config

_SIGNIFICANT = 0.01


def is_shown(p: float | None) -> bool:
    """Return True if a mean above the target is shown."""
    return p is not None and p < _SIGNIFICANT


def report(session: Session, result: WholeRuns) -> None:
    """Print accuracy, time, test and waiting time, a line each."""
    count = len(result.runs)
    for label in result.runs[0].accuracies:
        mean, deviation = mean_and_deviation(result.accuracies(label))
        session.say(f"accuracy, {label}: {cells.accuracy(mean, deviation, count)}")
    mean, deviation = mean_and_deviation(result.seconds)
    spread = "" if deviation is None else f", σ {deviation:.3f} s"
    session.say(f"time: mean {mean:.3f} s, minimum {min(result.seconds):.3f} s{spread} ({count})")
    if result.target is not None:
        verdict = "reached" if is_shown(result.p) else "not shown"
        session.say(
            f"mean accuracy ({result.figure}) of at least {100 * result.target:g} %: {verdict}; p of the "
            f"one-sided t-test: {cells.p_value(result.p)}, to be below {_SIGNIFICANT:g}"
        )
    caches = f"cold: {result.compiled} kernels were" if result.compiled else "warm: no kernel was"
    session.say(
        f"from the command to the first trained network: {result.wait_s:.1f} s; the compile caches were "
        f"{caches} compiled"
    )
    if result.gpu_before is not None and result.gpu_after is not None:
        before, after = result.gpu_before, result.gpu_after
        session.say(f"clocks of the GPU before {_clocks(before)}, after {_clocks(after)}")


def _clocks(state: GpuState) -> str:
    unknown = "unknown"
    parts = (cells.count(state.sm_mhz) or unknown, cells.count(state.max_sm_mhz) or unknown)
    return f"{parts[0]} of {parts[1]} MHz, {cells.count(state.temperature_c) or unknown} °C"


def record_peers(
    session: Session, ours: WholeRuns, peers: Sequence[PeerProgram], planned: int, config: Config
) -> None:
    """Print and record the runs of peers beside ours; PLANNED were asked for, of each."""
    for peer in peers:
        if len(peer.runs) < 2:
            session.say(f"{peer.name}: stopped before its second run")
            continue
        accuracies = [run.accuracies[THEIR_VIEWS] for run in peer.runs]
        theirs = WholeRuns(
            figure=THEIR_VIEWS,
            target=ours.target,
            p=None if ours.target is None else p_not_above(accuracies, ours.target),
            runs=tuple(peer.runs),
            planned=planned,
            wait_s=peer.wait_s or 0.0,
            compiled=None,
            source_hash=hash_of_program(peer.path),
            gpu_before=ours.gpu_before,
            gpu_after=ours.gpu_after,
        )
        mean, deviation = mean_and_deviation(theirs.seconds)
        accuracy = cells.accuracy(*mean_and_deviation(tuple(accuracies)), len(accuracies))
        session.say(
            f"{peer.name}: {accuracy}, {mean:.3f} s, σ {deviation:.3f} s; ours takes "
            f"{mean_and_deviation(ours.seconds)[0] / mean:.2f} of its time"
        )
        session.record(
            *("time_to_accuracy", peer.name, config, None),
            whole_runs=theirs,
            model="its authors' program",
        )
