"""Prints and records whole trainings: accuracy, time, test and waiting time, ours and those of peers."""

from collections.abc import Sequence

from benchmarks.measure import cells
from benchmarks.measure.machine import hash_of_program
from benchmarks.measure.session import Session
from benchmarks.measure.t_tests import p_not_above
from benchmarks.peers.programs import THEIR_VIEWS, PeerProgram
from benchmarks.publish.columns import Column, make_table
from benchmarks.publish.whole_runs import Floor, FloorPart, GpuState, WholeRuns, mean_and_deviation
from pipeline.config import Config
from pipeline.profiling.kernel_shares import KernelShare, kernel_table

_SIGNIFICANT = 0.01
_FLOOR = (
    Column[FloorPart]("kind", "left", lambda part: part.kind),
    Column[FloorPart]("TFLOP", "right", lambda part: cells.significant(part.flops / 1e12)),
    Column[FloorPart]("GB", "right", lambda part: cells.significant(part.num_bytes / 1e9)),
    Column[FloorPart]("ms at least", "right", lambda part: cells.number(1e3 * part.seconds)),
)


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
    _report_wait(session, result)
    if result.gpu_before is not None and result.gpu_after is not None:
        before, after = result.gpu_before, result.gpu_after
        session.say(f"clocks of the GPU before {_clocks(before)}, after {_clocks(after)}")
    if result.floor is not None:
        _report_floor(session, result.floor, mean)
    for work in result.kernels:
        rows = [KernelShare(**row.model_dump()) for row in work.rows]
        session.say(
            f"\nkernels of {work.work}, which takes {work.microseconds:,.0f} µs:\n\n{kernel_table(rows)}"
        )


def _report_wait(session: Session, result: WholeRuns) -> None:
    caches = f"cold: {result.compiled} kernels were" if result.compiled else "warm: no kernel was"
    session.say(
        f"from the command to the first trained network: {cells.number(result.wait_s, 1)} s; the compile "
        f"caches were {caches} compiled"
    )
    if result.cold_wait_s is not None and result.warm_wait_s is not None:
        session.say(
            f"the same in a new process: {result.cold_wait_s:.1f} s with cold compile caches, "
            f"{result.warm_wait_s:.1f} s with warm ones"
        )


def _report_floor(session: Session, floor: Floor, mean_s: float) -> None:
    """Print the two numbers of a run, operations and bytes, with the least time that follows from them."""
    session.say(
        f"least work of a run: {floor.flops / 1e12:.4g} TFLOP and {floor.num_bytes / 1e9:.4g} GB; at this "
        f"device's best rates ({floor.flops_per_s / 1e12:.3g} TFLOP/s in a large matrix product, "
        f"{floor.bytes_per_s / 1e12:.3g} TB/s in a large copy) its layers take {floor.seconds:.3f} s, "
        f"{cells.percent(floor.seconds / mean_s)} of the mean time"
    )
    session.print(make_table("Least work of a run by kind of kernel", _FLOOR, floor.parts))


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
            wait_s=peer.wait_s,
            compiled=peer.compiled,
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
