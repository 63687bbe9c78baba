"""Trains one run. For several processes: `accelerate launch -m pipeline.train CONFIG [key=value…]`."""

import argparse
import contextlib
import logging
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
from pipeline.process.other_programs import OtherPrograms
from pipeline.process.signals import StopSignal
from pipeline.process.start_time import command_started, process_started
from pipeline.process.threads import wait_briefly
from pipeline.process.world import rank_on_host, read_world
from pipeline.run.folder import find_run
from pipeline.run.named_checkpoint import split_path
from pipeline.run.timeline import Timeline

if TYPE_CHECKING:
    from pipeline.data import Splits
    from pipeline.data.loaders.decoder import Decoder
    from pipeline.distributed.processes import Processes
    from pipeline.distributed.watchdog import Watch
    from pipeline.process.threads import ThreadCount
    from pipeline.run.folder import RunFolder
    from pipeline.run.lock import RunLock
    from pipeline.run.resume import Found
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
    others = OtherPrograms()
    reading = _read_data_beside(config)
    with imports_uncollected():
        from pipeline.distributed.processes import connect, pick_device
        from pipeline.distributed.watchdog import Watch
        from pipeline.finalize import finish
        from pipeline.run.lock import RunLock
        from pipeline.training.build import import_compiler, set_backends
        from pipeline.training.cpu_threads import threads_restored
        from pipeline.training.faults import explained
        from pipeline.training.trainer import side_stream

        import_compiler(config.compile, pick_device(config))
    timeline.begin("build")
    set_backends(config)
    processes = connect(config)
    world_size = processes.shard.world_size
    with side_stream(processes.device), threads_restored(), RunLock() as lock, explained(config, world_size):
        with Watch(processes, config.runtime.hang_timeout_s) as watch, explained(config, world_size):
            trainer = _open_and_build(config, recipe, processes, lock, timeline, reading, others)
            _attach(trainer, stop, watch, profile)
            evaluation = _fit(trainer)
        if processes.is_main:
            finish(trainer, evaluation)
    assert trainer.run is not None
    return trainer.run


def _attach(trainer: "Trainer", stop: StopSignal, watch: "Watch", profile: bool) -> None:
    """Give a trainer what it hears during the run: signals, the other processes, and the profiler."""
    trainer.stop, trainer.watch = stop, watch
    stop.agree_through(watch.store, trainer.clock.max_ahead)
    if profile and trainer.processes.is_main:
        _profile_steps(trainer)


def _check_folders(config: Config) -> None:
    """Refuse a cache folder that cannot be written, and a run to resume that does not exist.

    Several processes leave the run to rank 0, which may be the only one that sees the folder.
    """
    make_cache_folder()
    if config.resume not in ("none", "auto") and read_world().size == 1:
        find_run(split_path(path_of("resume", config.resume))[0])


def _read_data_beside(config: Config) -> "Future[Splits] | None":
    """Read the data set while the main thread imports torch.

    Returns:
        None for one of several processes, of which rank 0 reads first.

    The thread does not keep the process alive: a run that is refused meanwhile ends at once.
    """
    if read_world().size > 1:
        return None
    from pipeline.data import load_splits

    future: Future[Splits] = Future()

    def read() -> None:
        try:
            future.set_result(load_splits(config.data, config.seed))
        except BaseException as error:  # raised where the data set is needed
            future.set_exception(error)

    threading.Thread(target=read, name="data", daemon=True).start()
    return future


def _open_and_build(
    config: Config,
    recipe: str,
    processes: "Processes",
    lock: "RunLock",
    timeline: Timeline,
    reading: "Future[Splits] | None",
    others: OtherPrograms,
) -> "Trainer":
    """Read the data, assemble the run and, once nothing refuses it any more, open its folder."""
    from pipeline.run.environment import describe_environment
    from pipeline.run.resume import open_run
    from pipeline.run.trackers import check_installed, wanted
    from pipeline.training.cpu_threads import set_threads

    check_installed(wanted(config))
    with ThreadPoolExecutor(1) as beside:  # git and nvidia-smi answer while the data set is read
        describe = (describe_environment, config, processes.device, processes.shard.world_size)
        environment = beside.submit(*describe) if processes.is_main else None
        with timeline.within("data"):
            splits = _read_data(config, processes) if reading is None else reading.result()
    found, decoder = processes.on_main(lambda: _find_run_to_continue(config, splits, processes, lock))
    threads = set_threads(processes, others, found.run)
    trainer = _assemble(config, splits, processes, found, decoder)
    trainer.timeline = timeline

    def begin_to_write() -> "RunFolder":
        assert environment is not None
        run = open_run(config, recipe, lock, found)
        return _begin_to_write(trainer, run, environment.result())

    trainer.run = processes.on_main(begin_to_write)
    _announce(trainer, threads)
    return trainer


def _assemble(
    config: Config, splits: "Splits", processes: "Processes", found: "Found", decoder: "Decoder | None"
) -> "Trainer":
    """Assemble the trainer, at the last checkpoint of the run that is continued, and with its decoder."""
    from pipeline.data import build_loaders
    from pipeline.run.console import TrainingConsole
    from pipeline.training.trainer import Trainer

    return Trainer.build(
        *(config, splits, processes),
        loaders=build_loaders(config, splits, processes.device, processes.shard, decoder),
        resume_from=found.run.resume_from if found.run is not None else None,
        console=TrainingConsole(enabled=processes.is_main),
    )


def _find_run_to_continue(
    config: Config, splits: "Splits", processes: "Processes", lock: "RunLock"
) -> "tuple[Found, Decoder | None]":
    """Return what `resume` means, and the decoder for all processes: they may differ in their cores."""
    from pipeline.data import decoder_for
    from pipeline.run.environment_record import decoder_of
    from pipeline.run.resume import find_resumable

    found = find_resumable(config, lock)
    return found, decoder_for(config, splits.train, processes.device, decoder_of(found.run))


def _read_data(config: Config, processes: "Processes") -> "Splits":
    from pipeline.data import load_splits

    return processes.main_first(lambda: load_splits(config.data, config.seed, is_main=processes.is_main))


def _begin_to_write(trainer: "Trainer", run: "RunFolder", environment: dict[str, Any]) -> "RunFolder":
    """Write what describes the run, and open its log. Return the folder with further warnings.

    What cannot be read of an earlier env.json is no reason to refuse a run that has a checkpoint.
    """
    import torch

    from pipeline.atomic_io import put_aside
    from pipeline.inference.preprocessing import InputSpec
    from pipeline.run.environment_record import (
        changed_data,
        changed_decoder,
        read_environment,
        record_environment,
    )

    assert trainer.splits is not None
    decoder = trainer.loaders.decoder
    if decoder is not None:
        environment = {**environment, "decoder": decoder.name}
    trainer.write_to(run)
    data, before, warnings = trainer.splits.fingerprint(), None, list(run.warnings)
    if run.environment.exists():
        try:
            before = read_environment(run.environment)
            decodes = decoder.name if decoder is not None else None
            warnings += filter(None, [changed_data(before, data), changed_decoder(before, decodes)])
        except UserError as error:
            warnings.append(f"{error}; renamed to {put_aside(run.environment).name}, and written anew")
    InputSpec.of(trainer.config, trainer.splits).write(run.inputs)
    environment = {**environment, "cpu_threads": torch.get_num_threads(), "data": data}
    record_environment(run, environment, trainer.state.step, before)
    return replace(run, warnings=tuple(warnings))


def _announce(trainer: "Trainer", threads: "ThreadCount | None") -> None:
    """Print what was resolved from the config and the machine, before the first step."""
    from pipeline.config import SLOW_ON_CPU
    from pipeline.training.build import compile_mode

    config, plan, run, splits = trainer.config, trainer.plan, trainer.run, trainer.splits
    assert run is not None and splits is not None
    processes, say = trainer.processes, trainer.console.say
    on_gpu = processes.device.type == "cuda"
    kind = "GPU" if on_gpu else "CPU"
    backend = f" ({kind} backend)" if config.data.loader == "dali" else ""
    held_out = f", {len(splits.holdout.labels)} held out" if splits.holdout is not None else ""
    for warning in run.warnings:
        say(f"warning: {warning}")
    say(
        f"{config.model.name} on {config.data.dataset} ({len(splits.train.labels)} train, "
        f"{len(splits.test.labels)} test{held_out}), {processes.shard.world_size} x {kind}, "
        f"loader {config.data.loader}{backend}, "
        f"{config.precision.mode}, compile {compile_mode(config.compile, processes.device)}, batch "
        f"{config.data.batch_size}, {plan.total_steps} steps of which {plan.steps_per_epoch} an epoch"
    )
    if threads is not None and threads.reason:
        say(str(threads))
    if trainer.loaders.decoder is not None:
        say(trainer.loaders.decoder.describe())
    if config.precision.mode == "fp16" and not on_gpu:
        say(f"warning: {SLOW_ON_CPU}")
    for warning in (*config.warnings, *plan.warnings):
        say(f"warning: {warning}")
    if run.resume_from is not None:
        say(f"continuing {run.path} from step {trainer.state.step}")


def _profile_steps(trainer: "Trainer") -> None:
    """Profile some steps after warm-up, of the image size that the run has then."""
    from pipeline.data.sampling.progressive import training_resolutions
    from pipeline.profiling.roofline import step_work
    from pipeline.profiling.step_profiler import StepProfiler

    config, state, splits, run = trainer.config, trainer.state, trainer.splits, trainer.run
    assert run is not None and splits is not None
    resolutions = training_resolutions(config, trainer.plan.steps_per_epoch)
    size = next(size for first, size in reversed(resolutions) if first <= state.step)
    shape = (splits.num_channels, size, size)
    element_bytes = 4 if config.precision.mode == "fp32" else 2
    batch_size = config.data.batch_size // trainer.processes.shard.world_size
    scaled = config.precision.mode == "fp16"
    work = step_work(state.model, shape, batch_size, element_bytes, config.optimizer.name, scaled)
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
