"""Trains whole runs with several seeds in one process, compiled and captured once, and times them."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np

from benchmarks.measure.run_floor import steps_of_phases
from benchmarks.measure.timing import Stopwatch
from benchmarks.publish.whole_runs import KernelTable, KernelTime, TimedRun
from pipeline.config import Config
from pipeline.data import FileSet, ImageSet, Splits, build_loaders, load_splits
from pipeline.distributed.processes import Processes
from pipeline.errors import TrainingError
from pipeline.profiling.kernel_shares import profile_kernels
from pipeline.training.evaluate import EvalResult
from pipeline.training.restart import fit_to_images_again, restart
from pipeline.training.trainer import Trainer

ONE_VIEW = "one view"
_PROFILED_STEPS = 10


class WholeRunRig:
    """A trainer that starts again with each seed, in the same memory.

    It is built, compiled, captured and warmed up on random images. No work is done on the images of the data
    set before the first run.

    Args:
        config: of the runs, with the first seed.
        splits: the data set of this config, in memory.
        processes: a run of one process.
    """

    def __init__(self, config: Config, splits: Splits, processes: Processes):
        self._config, self._splits, self._processes = config, splits, processes
        self._stopwatch = Stopwatch(processes.device)
        self.trainer = Trainer.build(config, random_splits(splits), processes)
        self.trainer.plan = self.trainer.plan.without_interruptions()
        self._warm_up()
        self._captured = self.trainer.evaluator.num_captured

    def _warm_up(self) -> None:
        trainer = self.trainer
        on_gpu = self._processes.device.type == "cuda"
        # the kernel of the fused loader is compiled again for the last, shorter launch of an epoch
        least = trainer.plan.steps_per_epoch + 1 if on_gpu else 1
        batches = enumerate(trainer.loaders.train.batches_from(0), 1)
        phases = trainer.step.phases
        for phase in phases:
            for number, batch in batches:
                if trainer.step.phase is not phase:  # before its first step, or when a short one is over
                    trainer.state.step = phase.first_step
                trainer.step(batch)
                if trainer.step.settled and (number >= least or phase is not phases[-1]):
                    break
        trainer.evaluate_weights(trainer.loaders.test)

    def train(self, config: Config) -> TimedRun:
        """Train one seed, and time it.

        The time begins with the first work on the training images, and ends with the last view of the test
        images. Drawing the initial weights comes before.

        Args:
            config: that of the rig, but for the seed.
        """
        splits = self._splits_of(config)
        loaders = build_loaders(config, splits, self._processes.device, self._processes.shard)
        restart(self.trainer, config, splits, loaders)
        self._stopwatch.synchronize()
        results: list[EvalResult] = []
        seconds = self._stopwatch.seconds(lambda: results.append(self._fit()))
        figures = results[0].figures()
        accuracies = {ONE_VIEW: figures.accuracy, **figures.other_accuracies()}
        return TimedRun(seed=config.seed, seconds=seconds, accuracies=accuracies)

    def _fit(self) -> EvalResult:
        fit_to_images_again(self.trainer)
        return self.trainer.fit()

    def _splits_of(self, config: Config) -> Splits:
        """Return the data set, which is read again only if it depends on the seed."""
        depends = bool(config.data.holdout) or config.data.dataset == "synthetic"
        if not depends or config.seed == self._config.seed:
            return self._splits
        return load_splits(config.data, config.seed)

    def profile(self) -> tuple[KernelTable, ...]:
        """Time and profile steps of the longest phase, then the evaluation, on a GPU.

        The state of the trainer is of no use afterwards, until the next run resets it.
        """
        trainer = self.trainer
        phase, length = max(steps_of_phases(trainer), key=lambda item: item[1])
        first, steps = phase.first_step, min(_PROFILED_STEPS, length)
        batches = trainer.loaders.train.batches_from(first)
        trainer.state.step = first

        def step() -> None:
            trainer.step(next(batches))
            if trainer.state.step == first + length:
                trainer.state.step = first

        return (
            self._profile(f"a step, {steps} from step {first} on", step, steps),
            self._profile("the evaluation", lambda: trainer.evaluate_weights(trainer.loaders.test), 1),
        )

    def _profile(self, name: str, work: Callable[[], object], repeats: int) -> KernelTable:
        def repeat() -> None:
            for _ in range(repeats):
                work()

        seconds = self._stopwatch.seconds(repeat)
        rows = profile_kernels(work, self._processes.device, repeats)
        times = tuple(KernelTime(**asdict(row)) for row in rows)
        return KernelTable(work=name, microseconds=1e6 * seconds / repeats, rows=times)

    def check(self) -> None:
        """Check the runs so far.

        Raises:
            TrainingError: a graph was compiled or captured after warm-up, so that the time is not that of
                training.
        """
        extra = self.trainer.step.recompilations
        if extra:
            raise TrainingError(
                f"the step was compiled {extra} more times after warm-up: shapes or types change between "
                "batches"
            )
        extra = self.trainer.evaluator.num_captured - self._captured
        if extra:
            raise TrainingError(
                f"the evaluation was captured {extra} more times after warm-up: its batches change shape"
            )


def random_splits(splits: Splits) -> Splits:
    """Return a data set with the same shapes and classes, of random pixels and labels, without a holdout."""
    generator = np.random.default_rng(0)

    def noise(part: ImageSet | FileSet) -> ImageSet:
        assert isinstance(part, ImageSet), "files are refused before"
        pixels = np.frombuffer(bytearray(generator.bytes(part.images.size)), np.uint8)
        labels = generator.integers(0, splits.num_classes, len(part), np.int64)
        return ImageSet(pixels.reshape(part.images.shape), labels)

    return replace(splits, train=noise(splits.train), test=noise(splits.test), holdout=None)


@contextmanager
def without_old_garbage() -> Iterator[None]:
    """Keep the garbage collector from the objects that exist now: among those of torch it takes a tenth of a
    second, in the middle of a run."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
