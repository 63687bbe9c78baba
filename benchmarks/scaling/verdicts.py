"""Says what the records of a scaling benchmark show: speed-ups, targets, predictions, ways to average."""

from collections.abc import Mapping

from benchmarks.measure.cells import percent
from benchmarks.measure.session import Session
from benchmarks.publish.records import Record
from benchmarks.scaling import prediction
from benchmarks.scaling.scaling_model import Model
from benchmarks.scaling.variants import APART, DDP, WEAK
from pipeline.errors import UserError

# throughput over that of DDP, at which averaging of our own is worth its code, and images of a GPU
_WORTH_IT, _DECIDING_BATCH = 1.015, 1024


def read_target(target: float | None) -> float | None:
    """Return the target as a fraction of 1.

    Raises:
        UserError: it is no efficiency in per cent.
    """
    if target is None:
        return None
    if not 1 < target <= 100:
        raise UserError(f"--target: {target:g} is no efficiency in per cent; give one such as 95")
    return target / 100


def say(session: Session, target: float | None, models: Mapping[str, Model]) -> bool:
    """Print a sentence for each speed-up, comparison and prediction.

    Args:
        session: with the records.
        target: of the efficiency of weak scaling; None for none.
        models: that predicted, by the loader.

    Returns:
        False if the target is missed on some number of processes.
    """
    reached = True
    for record in session.records:
        if record.baseline is not None:
            session.say(_speed_up(record, session))
            if target is not None and record.variant == WEAK:
                reached = _say_target(session, record, target) and reached
    for record in session.records:
        if record.variant == DDP:
            session.say(_beside_ours(session, record))
    predictions = prediction.table(session.records)
    if predictions.rows:
        session.print(predictions)
    for record in session.records:
        if record.predicted is not None and prediction.is_off(record):
            apart = _sibling(session, record, APART)
            session.say(prediction.describe_miss(models[record.loader or ""], record, apart))
    return reached


def _sibling(session: Session, record: Record, variant: str) -> Record:
    """Return the record of another variant in the same groups."""
    key = (variant, record.world_size, record.loader)
    return next(r for r in session.records if (r.variant, r.world_size, r.loader) == key)


def _where(record: Record, session: Session) -> str:
    devices = "GPUs" if session.on_gpu else "processes"
    loader = f" with {record.loader}" if len(session.options.loaders) > 1 else ""
    return f"on {record.world_size} {devices}{loader}"


def _speed_up(record: Record, session: Session) -> str:
    assert record.baseline is not None
    ratio, apart = record.baseline.ratio, record.variant == APART
    scaling, comma, averaging = record.variant.partition(",")
    kind = "apart, without communication," if apart else f"{scaling} scaling{comma}{averaging}"
    figures = f"{ratio.median:.2f} × ({ratio.p10:.2f}–{ratio.p90:.2f})"
    return f"{kind} {_where(record, session)}: {figures}"


def _say_target(session: Session, record: Record, target: float) -> bool:
    assert record.baseline is not None
    efficiency = record.baseline.ratio.median / record.world_size
    verdict = "reached" if efficiency >= target else "missed"
    session.say(
        f"weak scaling {_where(record, session)}, target {percent(target)}: {percent(efficiency)}, {verdict}"
    )
    return efficiency >= target


def _beside_ours(session: Session, record: Record) -> str:
    """Return how our averaging compares with DDP, in the same groups."""
    ours = _sibling(session, record, WEAK)
    assert ours.baseline is not None and record.baseline is not None
    ratio = ours.baseline.ratio.median / record.baseline.ratio.median
    verdict = _verdict(record, ratio, on_gpu=session.on_gpu)
    return f"ours over DDP {_where(record, session)}: {ratio:.3f} ×; {verdict}"


def _verdict(record: Record, ratio: float, *, on_gpu: bool) -> str:
    """Return whether averaging of our own is worth its code; other batches, and the CPU, decide nothing.

    Args:
        record: of DDP.
        ratio: of our throughput to that of DDP.
        on_gpu: True if GPUs were measured.
    """
    rule = f"our averaging is worth its code from {_WORTH_IT} × at {_DECIDING_BATCH:,} images a GPU"
    if not on_gpu or record.batch_size != _DECIDING_BATCH * record.world_size:
        return f"{rule}, which this is not"
    return f"{rule}: {'yes' if ratio >= _WORTH_IT else 'no'}"
