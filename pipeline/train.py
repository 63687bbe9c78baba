"""Trains one run. For several processes: `accelerate launch -m pipeline.train CONFIG [key=value…]`."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.begin import open_and_build, read_data_beside
from pipeline.commands.arguments import add_training
from pipeline.commands.exit_code import run_process
from pipeline.config import Config, load_config, name_of, path_of
from pipeline.errors import (
    EXIT_FAILURE,
    EXIT_PREEMPTED,
    OutOfMemory,
    PeerError,
    Preempted,
    TrainingError,
    UserError,
)
from pipeline.process.cache_dirs import make_cache_folder, use_cache_folder
from pipeline.process.exit import flush, leave_now
from pipeline.process.fast_import import imports_uncollected
from pipeline.process.gpu_ahead import wake_gpu
from pipeline.process.other_programs import OtherPrograms
from pipeline.process.signals import StopSignal
from pipeline.process.start_time import command_started, process_started
from pipeline.process.threads import wait_briefly
from pipeline.process.world import rank_on_host, read_world
from pipeline.run.folder import find_run
from pipeline.run.named_checkpoint import split_path
from pipeline.run.timeline import Timeline

if TYPE_CHECKING:
    from pipeline.distributed.watchdog import Watch
    from pipeline.run.folder import RunFolder
    from pipeline.training.evaluate import EvalResult
    from pipeline.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train by `python -m pipeline train`."""
    flags = (("--profile", arguments.profile), ("--dry-run", arguments.dry_run))
    return main([arguments.config, *arguments.overrides, *[flag for flag, given in flags if given]])


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 done, 1 failed, 2 bad input found before training, 75 stopped and
    saved."""
    timeline = Timeline(command_started())
    timeline.begin("imports", process_started())
    use_cache_folder()
    wait_briefly()
    parser = argparse.ArgumentParser(prog="pipeline.train", description="Trains one run.")
    add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with StopSignal(exits=True) as stop:
        code = EXIT_FAILURE
        try:
            code = _exit_code(arguments, timeline, stop)
        finally:
            _leave_process_group(code)
    return code


def _exit_code(arguments: argparse.Namespace, timeline: Timeline, stop: StopSignal) -> int:
    """Train or print the plan; print an error that a person can mend, and return its exit code."""
    try:
        config, recipe = load_config(arguments.config, arguments.overrides), name_of(arguments.config)
        if arguments.dry_run:
            _print_plan(config, recipe)
        else:
            train(config, recipe, timeline, arguments.profile, stop)
        return 0
    except (UserError, TrainingError, Preempted) as error:
        if _should_report(error):
            word = "stopped" if isinstance(error, Preempted) else "error"
            with contextlib.suppress(OSError):  # the terminal may have hung up; the exit code remains
                print(f"{word}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if not _in_process_group():
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        return EXIT_FAILURE


def _leave_process_group(code: int) -> None:
    flush()
    if not _in_process_group():
        return
    if code not in (0, EXIT_PREEMPTED):
        # Destroying the group could hang: NCCL waits for captured steps, which the traceback keeps alive, or
        # for other ranks.
        leave_now(code)
    sys.modules["torch"].distributed.destroy_process_group()


def _print_plan(config: Config, recipe: str) -> None:
    from pipeline.commands.dry_run import describe_plan

    for line in describe_plan(config, recipe):
        if read_world().rank == 0:
            print(line, flush=True)


def _should_report(error: Exception) -> bool:
    """True if this rank prints the error.

    Of connected ranks the first one that fails prints it; the others get a `PeerError`. Of ranks that are not
    connected, the first one of each host prints it, since all of a host have the same error; but memory may
    run out on one rank alone.
    """
    if isinstance(error, Preempted):
        return read_world().rank == 0
    if _in_process_group():
        return not isinstance(error, PeerError)
    return rank_on_host() == 0 or isinstance(error, OutOfMemory)


def _in_process_group() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def train(
    config: Config,
    recipe: str = "run",
    timeline: Timeline | None = None,
    profile: bool = False,
    stop: StopSignal | None = None,
) -> "RunFolder":
    """Train one run to its end and leave its folder complete.

    Args:
        config: the run's config.
        recipe: names the run, unless `log.name` does.
        timeline: begun with the command; default: begun now.
        profile: profile some steps after warm-up into the run folder.
        stop: hears of signals; default: one that does so until the run ends.

    Returns:
        The run folder: `load_trained(run.path)` takes the network out of it.
    """
    timeline = timeline or Timeline()
    timeline.begin("imports")
    if stop is None:
        with StopSignal() as stop:
            return train(config, recipe, timeline, profile, stop)
    _check_folders(config)
    others, wait_for_gpu, reading = OtherPrograms(), _wake_gpu(config), read_data_beside(config)
    with imports_uncollected():
        from pipeline.distributed.processes import connect, pick_device
        from pipeline.distributed.watchdog import Watch
        from pipeline.finalize import finish
        from pipeline.run.lock import RunLock
        from pipeline.training.build import prepare_compiler, set_backends
        from pipeline.training.cpu_threads import threads_restored
        from pipeline.training.faults import explained
        from pipeline.training.trainer import side_stream

        wait_for_gpu()
        prepare_compiler(config.compile, pick_device(config))
    timeline.begin("build")
    set_backends(config)
    processes = connect(config)
    world_size = processes.shard.world_size
    with side_stream(processes.device), threads_restored(), RunLock() as lock, explained(config, world_size):
        with Watch(processes, config.runtime.hang_timeout_s) as watch, explained(config, world_size):
            trainer = open_and_build(config, recipe, processes, lock, timeline, reading, others)
            _attach(trainer, stop, watch, profile)
            evaluation = _fit(trainer)
        if processes.is_main:
            finish(trainer, evaluation)
    assert trainer.run is not None
    return trainer.run


def _wake_gpu(config: Config) -> Callable[[], None]:
    """Begin to open the GPU of this process, unless the config wants none; return a function that waits."""
    if config.runtime.device == "cpu":
        return lambda: None
    return wake_gpu(read_world().local_rank, with_dali=config.data.loader == "dali")


def _attach(trainer: "Trainer", stop: StopSignal, watch: "Watch", profile: bool) -> None:
    """Give a trainer what it hears during the run: signals, the other processes, and the profiler."""
    from pipeline.finalize import import_for_the_end

    trainer.stop, trainer.watch = stop, watch
    stop.agree_through(watch.store, trainer.clock.max_ahead)
    if not trainer.processes.is_main:
        return
    if profile:
        _profile_steps(trainer)
    if trainer.processes.device.type == "cuda":  # on a CPU it would take the time of training
        trainer.when_settled = lambda: import_for_the_end(trainer.config)


def _check_folders(config: Config) -> None:
    """Refuse a cache folder that cannot be written, and a run to resume that does not exist.

    Several processes leave the run to rank 0, which may be the only one that sees the folder.
    """
    make_cache_folder()
    if config.resume not in ("none", "auto") and read_world().size == 1:
        find_run(split_path(path_of("resume", config.resume))[0])


def _profile_steps(trainer: "Trainer") -> None:
    """Profile some steps after warm-up, of the image size that the run has then."""
    from pipeline.data.sampling.progressive import training_resolutions
    from pipeline.profiling.roofline import step_work_of
    from pipeline.profiling.step_profiler import StepProfiler

    config, state, splits, run = trainer.config, trainer.state, trainer.splits, trainer.run
    assert run is not None and splits is not None
    resolutions = training_resolutions(config, trainer.plan.steps_per_epoch)
    size = next(size for first, size in reversed(resolutions) if first <= state.step)
    shape = (splits.num_channels, size, size)
    work = step_work_of(config, state.model, shape, trainer.processes.shard.world_size)
    trainer.profiler = StepProfiler(run.profile, trainer.processes.device, work)


def _fit(trainer: "Trainer") -> "EvalResult":
    try:
        return trainer.fit()
    except Preempted:
        # "saved" must be true when it is said; and as soon as one process leaves, the launcher ends the
        # others
        trainer.processes.on_main(trainer.close)
        trainer.processes.on_main(lambda: _abandon(trainer))
        raise
    except BaseException:
        _abandon(trainer)
        raise
    finally:
        trainer.close()


def _abandon(trainer: "Trainer") -> None:
    """Tell the trackers that the run has not reached its end."""
    if trainer.trackers is not None:
        trainer.trackers.close(failed=True)


if __name__ == "__main__":
    run_process(main)
