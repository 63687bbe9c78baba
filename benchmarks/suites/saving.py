"""What saving costs: training with a checkpoint at the end of each epoch beside training without, in turn.

Saving is that of a run: the device is waited for, the state copied, and read off and written by a thread while training goes on; where
that takes longer than an epoch, the next one waits for it. Windows are whole epochs, so that all of it falls into them.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.measure.options import check_at_least
from benchmarks.measure.session import Session
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from pipeline.config import config_hash
from pipeline.data import Loader
from pipeline.run.checkpoint import CheckpointWriter

_EPOCHS, _QUICK_EPOCHS = 4, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, help=f"epochs of a window (default: {_EPOCHS})")
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are written for the time being (default: log.dir)"
    )


class _SavingWorkload(StepWorkload):
    """A step with a checkpoint after each epoch.

    Args:
        name, rig, loader, lead_in: as of `StepWorkload`.
        writer: of the checkpoints.
        every: steps of an epoch.
    """

    def __init__(
        self, name: str, rig: Rig, loader: Loader, lead_in: int, writer: CheckpointWriter, every: int
    ):
        super().__init__(name, rig, loader, lead_in)
        self._writer, self._every = writer, every

    def run(self, steps: int) -> None:
        for _ in range(steps // self._every):
            super().run(self._every)
            self.rig.synchronize()
            assert self.rig.state.is_finite()
            self._writer.save(self.rig.state.snapshot())
        super().run(steps % self._every)

    def finish(self, step_s: float) -> None:
        super().finish(step_s)
        self._writer.wait()  # not in the other one's window


def run(session: Session) -> None:
    check_at_least(1, session.options, "epochs")
    config = session.config()
    splits, processes = session.splits(config), session.processes
    rig = Rig(config, splits, processes)
    loader = build_train_loader(config, splits, processes)
    epochs = _QUICK_EPOCHS if session.quick else session.options.epochs or _EPOCHS
    folder = session.options.folder or Path(config.log.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as checkpoints:
        writer = CheckpointWriter(Path(checkpoints), config_hash(config))
        lead_in = session.lead_in(config)
        without = StepWorkload("no checkpoint", rig, loader, lead_in)
        saving = _SavingWorkload(
            "a checkpoint an epoch", rig, loader, lead_in, writer, loader.steps_per_epoch
        )
        timings = session.time([without, saving], epochs * loader.steps_per_epoch)
        writer.close()
    compared = timings[1].against(timings[0])
    session.record("saving", without.name, config, timings[0], data_wait_fraction=without.data_wait_fraction)
    session.record(
        "saving", saving.name, config, timings[1], compared
    )  # the device waits for saving too: not told apart from data
    session.print_tables()
    cost, least, most = (
        1 / ratio - 1 for ratio in (compared.ratio.median, compared.ratio.p90, compared.ratio.p10)
    )
    session.say(
        f"saving costs {cost:.2%} of the time of training ({least:.2%} to {most:.2%}, n = {compared.ratio.n})"
    )
