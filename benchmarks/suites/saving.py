"""Time training with a checkpoint at the end of each epoch, beside training without.

A checkpoint is saved as in a run: the device is synchronised and the state copied; a thread writes the copy
while training continues. If writing takes longer than an epoch, the next checkpoint waits for it. Windows are
whole epochs, so that all of the saving falls into them.
"""

import tempfile
from pathlib import Path

from benchmarks.arguments import SAVING_EPOCHS
from benchmarks.measure.options import check_at_least
from benchmarks.measure.session import Session
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from pipeline.config import config_hash, path_of
from pipeline.data import Loader
from pipeline.run.checkpoint_writer import CheckpointWriter

_QUICK_EPOCHS = 1


class _SavingWorkload(StepWorkload):
    """A step with a checkpoint after each epoch.

    Args:
        name, rig, loader, lead_in: as of `StepWorkload`.
        writer: of the checkpoints; one is written after each epoch of the loader.
    """

    def __init__(self, name: str, rig: Rig, loader: Loader, lead_in: int, writer: CheckpointWriter):
        super().__init__(name, rig, loader, lead_in)
        self._writer, self._steps_per_epoch = writer, loader.steps_per_epoch

    def run(self, steps: int) -> None:
        for _ in range(steps // self._steps_per_epoch):
            super().run(self._steps_per_epoch)
            self.rig.synchronize()
            assert self.rig.state.is_finite()
            self._writer.save(self.rig.state.snapshot())
        super().run(steps % self._steps_per_epoch)

    def finish(self, step_s: float) -> None:
        super().finish(step_s)
        self._writer.wait()  # writing must not run into the window of the other workload


def run(session: Session) -> None:
    check_at_least(1, session.options, "epochs")
    config = session.config()
    splits, processes = session.splits(config), session.processes
    rig = Rig(config, splits, processes)
    loader = build_train_loader(config, splits, processes)
    epochs = _QUICK_EPOCHS if session.quick else session.options.epochs or SAVING_EPOCHS
    folder = session.options.folder or path_of("log.dir", config.log.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as checkpoints:
        writer = CheckpointWriter(Path(checkpoints), config_hash(config))
        lead_in = session.lead_in(config)
        without = StepWorkload("no checkpoint", rig, loader, lead_in)
        saving = _SavingWorkload("a checkpoint an epoch", rig, loader, lead_in, writer)
        timings = session.time([without, saving], epochs * loader.steps_per_epoch)
        writer.close()
    compared = timings[1].against(timings[0])
    session.record("saving", without.name, config, timings[0], data_wait_fraction=without.data_wait_fraction)
    # no data wait: the device waits for saving too, and the two cannot be told apart
    session.record("saving", saving.name, config, timings[1], compared)
    session.print_tables()
    ratio = compared.ratio
    overhead, least, most = (1 / value - 1 for value in (ratio.median, ratio.p90, ratio.p10))
    session.say(
        f"saving costs {overhead:.2%} of the time of training ({least:.2%} to {most:.2%}, n = {ratio.n})"
    )
