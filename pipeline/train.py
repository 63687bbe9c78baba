"""Training: `accelerate launch -m pipeline.train CONFIG [key=value…]`."""

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.arguments import add_training
from pipeline.config import Config, load_config
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
from pipeline.process.exit import flush, leave_now, rank, report_exit_code
from pipeline.process.fast_import import imports_uncollected
from pipeline.process.signals import StopSignal

if TYPE_CHECKING:
    from pipeline.data import Splits
    from pipeline.distributed.processes import Processes
    from pipeline.distributed.watchdog import Watch
    from pipeline.profiling.step_profiler import StepProfiler
    from pipeline.run.console import TrainingConsole
    from pipeline.run.folder import RunFolder
    from pipeline.run.lock import RunLock
    from pipeline.training.evaluate import EvalResult
    from pipeline.training.trainer import Plan, Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train by `python -m pipeline train`."""
    options = [
        option
        for option, given in (("--profile", arguments.profile), ("--dry-run", arguments.dry_run))
        if given
    ]
    return main([arguments.config, *arguments.overrides, *options])


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 done, 1 failed, 2 bad input found before training, 75 stopped by a signal and saved."""
    started = _started()
    use_cache_folder()
    parser = argparse.ArgumentParser(prog="pipeline.train", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    code = EXIT_FAILURE
    with StopSignal(exits=True) as stop:
        try:
            config, recipe = load_config(arguments.config, arguments.overrides), Path(arguments.config).stem
            if arguments.dry_run:
                _print_plan(config, recipe)
            else:
                train(config, recipe, started, arguments.profile, stop)
            code = 0
        except (UserError, TrainingError, Preempted) as error:
            code = error.exit_code
            if _speaks(error):
                with contextlib.suppress(OSError):  # the terminal may have hung up: the exit code tells too
                    print(
                        f"{'stopped' if isinstance(error, Preempted) else 'error'}: {error}", file=sys.stderr
                    )
        except Exception as error:
            if not _in_process_group():
                raise
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            report_exit_code(code)
            flush()
            if _in_process_group():
                if code not in (0, EXIT_PREEMPTED):
                    # NCCL would wait until the captured steps that use it are gone, which a traceback holds, or until the others answer
                    leave_now(code)
                sys.modules["torch"].distributed.destroy_process_group()
    return code


def _started() -> float:
    """When the command began, in seconds of `time.perf_counter`, which no change of the clock moves. launch.sh says it in epoch seconds."""
    now = time.time()
    return time.perf_counter() - max(now - float(os.environ.get("QUICKRES_START_TIME", now)), 0.0)


def _print_plan(config: Config, recipe: str) -> None:
    from pipeline.commands.dry_run import describe_plan

    plan = describe_plan(config, recipe)
    if rank() == 0:
        print(plan)


def _speaks(error: Exception) -> bool:
    """Whether this process tells of an error: of those that are connected, the first to fail, from which the others have heard of it.

    Of those that are not, rank 0, whose errors are everybody's; but memory may run out on one alone.
    """
    if _in_process_group() and not isinstance(error, Preempted):
        return not isinstance(error, PeerError)
    return rank() == 0 or isinstance(error, OutOfMemory)


def _in_process_group() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def train(
    config: Config,
    recipe: str = "run",
    started: float | None = None,
    profile: bool = False,
    stop: StopSignal | None = None,
) -> "RunFolder":
    """Train one run to its end and leave its folder complete.

    Args:
        config: the run's config.
        recipe: names the run, unless `log.name` does.
        started: when the command began, in seconds of `time.perf_counter`, from which `wall_s` counts; default: now.
        profile: profile some steps after warm-up into the run folder.
        stop: what hears of signals; default: one that does until the run ends.

    Returns:
        The run folder: `load_trained(run.path)` takes the network out of it.
    """
    started = time.perf_counter() if started is None else started
    if stop is None:
        with StopSignal() as own:
            return train(config, recipe, started, profile, own)
    make_cache_folder()
    with imports_uncollected():
        import torch

        from pipeline.distributed.processes import connect, pick_device
        from pipeline.distributed.watchdog import Watch
        from pipeline.finalize import finish
        from pipeline.run.lock import RunLock
        from pipeline.training.build import import_compiler, set_backends
        from pipeline.training.faults import explained

        import_compiler(config.compile, pick_device(config))

    set_backends(config)
    processes = connect(config)
    on_gpu = processes.device.type == "cuda"
    # the captured step must not run on the default stream
    stream = torch.cuda.Stream(processes.device) if on_gpu else None
    world_size = processes.shard.world_size
    with torch.cuda.stream(stream), RunLock() as lock, explained(config, world_size):
        with Watch(processes, config.runtime.hang_timeout_s) as watch, explained(config, world_size):
            trainer, run, splits = assemble(config, recipe, processes, lock, stop, watch)
            if profile and processes.is_main:
                trainer.profiler = _build_profiler(trainer, run, splits)
            evaluation = _fit(trainer)
        if processes.is_main:
            finish(trainer, run, evaluation, splits, started)
    return run


def _fit(trainer: "Trainer") -> "EvalResult":
    from pipeline.training.trainer import fit

    try:
        return fit(trainer)
    except Preempted:
        # "stopped and saved" is true only once it is on disk; and as soon as one process leaves, the launcher ends the others
        trainer.processes.on_main(trainer.close)
        raise
    finally:
        trainer.close()


def _build_profiler(trainer: "Trainer", run: "RunFolder", splits: "Splits") -> "StepProfiler":
    from pipeline.data.sampling.progressive import training_resolutions
    from pipeline.profiling.roofline import step_work
    from pipeline.profiling.step_profiler import StepProfiler

    config, processes = trainer.config, trainer.processes
    resolutions = training_resolutions(config, trainer.plan.steps_per_epoch)
    size = next(
        size for first, size in reversed(resolutions) if first <= trainer.state.step
    )  # of the steps that it sees
    shape = (splits.num_channels, size, size)
    element_bytes = 4 if config.precision.mode == "fp32" else 2
    batch_size, scaled = config.data.batch_size // processes.shard.world_size, config.precision.mode == "fp16"
    work = step_work(trainer.state.model, shape, batch_size, element_bytes, config.optimizer.name, scaled)
    return StepProfiler(run.path / "profile", processes.device, work)


def assemble(
    config: Config, recipe: str, processes: "Processes", lock: "RunLock", stop: StopSignal, watch: "Watch"
) -> "tuple[Trainer, RunFolder, Splits]":
    """Open the run folder and build or restore everything that `fit` works with."""
    from pipeline.config import config_hash
    from pipeline.data import build_loaders, load_splits
    from pipeline.inference.preprocessing import INPUT_FILE, InputSpec
    from pipeline.run.checkpoint import CheckpointWriter
    from pipeline.run.console import TrainingConsole
    from pipeline.run.environment import describe_environment
    from pipeline.run.folder import open_run
    from pipeline.run.records import MetricsLog, changed_data, record_environment
    from pipeline.training.build import build_state, captures
    from pipeline.training.clock import Clock
    from pipeline.training.state import load_checkpoint
    from pipeline.training.step import Step
    from pipeline.training.trainer import Plan, Trainer

    device, shard = processes.device, processes.shard
    with ThreadPoolExecutor(1) as aside:  # git and nvidia-smi answer while the data set is read
        environment = (
            aside.submit(describe_environment, config, device, shard.world_size)
            if processes.is_main
            else None
        )
        splits = processes.main_first(
            lambda: load_splits(config.data, config.seed, is_main=processes.is_main)
        )
    loaders = build_loaders(config, splits, device, shard)
    plan = Plan.of(config, loaders.train.steps_per_epoch)
    run = processes.on_main(lambda: open_run(config, recipe, lock))
    state = build_state(config, splits, processes, pretrained=run.resume_from is None)
    if run.resume_from is not None:
        folder = run.resume_from
        processes.main_first(
            lambda: load_checkpoint(folder, state)
        )  # a host that does not see the folder stops all
        if not processes.is_main:  # the sums of the open log window were saved for all processes together
            state.totals.start_window()
    console = TrainingConsole(plan.total_steps, state.step, processes.is_main)
    for warning in run.warnings:
        console.say(f"warning: {warning}")
    _announce(console, config, splits, plan, processes, run, state.step)
    if environment is not None:
        InputSpec.of(config, splits).write(run.path / INPUT_FILE)
        data = splits.fingerprint()
        if (changed := changed_data(run, data)) is not None:
            console.say(f"warning: {changed}")
        record_environment(run, {**environment.result(), "data": data}, state.step)
    clock = Clock(device, state.clock)
    stop.agree_through(watch.store, clock.max_ahead)
    trainer = Trainer(
        config=config,
        processes=processes,
        state=state,
        step=Step(config, state, plan.lr_at, captures(config.compile, device)),
        loaders=loaders,
        plan=plan,
        clock=clock,
        checkpoints=CheckpointWriter(run.checkpoints, config_hash(config)) if processes.is_main else None,
        metrics=MetricsLog(run, config.log.tensorboard, state.step) if processes.is_main else None,
        console=console,
        stop=stop,
        watch=watch,
    )
    return trainer, run, splits


def _announce(
    console: "TrainingConsole",
    config: Config,
    splits: "Splits",
    plan: "Plan",
    processes: "Processes",
    run: "RunFolder",
    step: int,
) -> None:
    """What was resolved from the config and the machine, before the first step."""
    from pipeline.training.build import compile_mode
    from pipeline.training.precision import SLOW_ON_CPU

    device, shard = processes.device, processes.shard
    where = f"{shard.world_size} x {'GPU' if device.type == 'cuda' else 'CPU'}"
    loader = (
        f"{config.data.loader} ({'GPU' if device.type == 'cuda' else 'CPU'} backend)"
        if config.data.loader == "dali"
        else config.data.loader
    )
    held_out = f", {len(splits.holdout.labels)} held out" if splits.holdout is not None else ""
    console.say(
        f"{config.model.name} on {config.data.dataset} ({len(splits.train.labels)} train, {len(splits.test.labels)} test{held_out}), "
        f"{where}, loader {loader}, {config.precision.mode}, compile {compile_mode(config.compile, device)}, "
        f"batch {config.data.batch_size}, {plan.total_steps} steps of which {plan.steps_per_epoch} an epoch"
    )
    if config.precision.mode == "fp16" and device.type == "cpu":
        console.say(f"warning: {SLOW_ON_CPU}")
    for warning in plan.warnings:
        console.say(f"warning: {warning}")
    if run.resume_from is not None:
        console.say(f"continuing {run.path} from step {step}")


if __name__ == "__main__":
    sys.exit(main())
