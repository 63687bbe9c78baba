"""Begins a run: reads the data, assembles the trainer, opens the run folder and says what was resolved."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, DataConfig, DigitsData, SyntheticData
from pipeline.errors import UserError
from pipeline.process.other_programs import OtherPrograms
from pipeline.process.world import read_world
from pipeline.run.timeline import DataReading, Timeline

if TYPE_CHECKING:
    from pipeline.data import Splits
    from pipeline.data.loaders.decoder import Decoder
    from pipeline.distributed.processes import Processes
    from pipeline.process.threads import ThreadCount
    from pipeline.run.folder import RunFolder
    from pipeline.run.lock import RunLock
    from pipeline.run.resume import Found
    from pipeline.training.trainer import Trainer


def _read_timed(config: DataConfig, load: "Callable[[], Splits]") -> "tuple[Splits, DataReading]":
    """Load the data set, and tell how it was read."""
    from pipeline.data.files.first_time import count_first_times

    began, before = time.perf_counter(), count_first_times()
    splits = load()
    needs_none = isinstance(config, DigitsData | SyntheticData)
    first_time = None if needs_none else count_first_times() > before
    return splits, DataReading(time.perf_counter() - began, first_time)


def read_data_beside(config: Config) -> "Future[tuple[Splits, DataReading]] | None":
    """Read the data set while the main thread imports torch.

    Returns:
        None for one of several processes, of which rank 0 reads first.

    The thread does not keep the process alive: a run that is refused meanwhile ends at once.
    """
    if read_world().size > 1:
        return None
    from pipeline.data import load_splits

    future: Future[tuple[Splits, DataReading]] = Future()

    def read() -> None:
        try:
            future.set_result(_read_timed(config.data, lambda: load_splits(config.data, config.seed)))
        except BaseException as error:  # raised where the data set is needed
            future.set_exception(error)

    threading.Thread(target=read, name="data", daemon=True).start()
    return future


def open_and_build(
    config: Config,
    recipe: str,
    processes: "Processes",
    lock: "RunLock",
    timeline: Timeline,
    reading: "Future[tuple[Splits, DataReading]] | None",
    others: OtherPrograms,
) -> "Trainer":
    """Read the data, assemble the run and, once nothing refuses it any more, open its folder.

    Args:
        config, recipe: as for `train.train`.
        processes: this process among the others.
        lock: taken for the folder of the run.
        timeline: of the run; the reading of the data is added.
        reading: the data set that `read_data_beside` reads; None: read it now, on rank 0 first.
        others: programs that use the CPU, measured since the start of the command.

    Returns:
        The trainer, at its first step or at the last checkpoint of the run that it continues.

    Raises:
        UserError: something refuses the run. No folder is left behind.
    """
    from pipeline.run.environment import describe_environment
    from pipeline.run.resume import open_run
    from pipeline.run.trackers import check_installed, wanted
    from pipeline.training.cpu_threads import set_threads

    check_installed(wanted(config))
    with ThreadPoolExecutor(1) as beside:  # git and nvidia-smi answer while the data set is read
        describe = (describe_environment, config, processes.device, processes.shard.world_size)
        environment = beside.submit(*describe) if processes.is_main else None
        with timeline.within("data"):
            splits, timeline.data = _read_data(config, processes) if reading is None else reading.result()
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


def _read_data(config: Config, processes: "Processes") -> "tuple[Splits, DataReading]":
    from pipeline.data import load_splits

    def load() -> "Splits":
        return load_splits(config.data, config.seed, is_main=processes.is_main)

    return processes.main_first(lambda: _read_timed(config.data, load))


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
    from pipeline.models.freeze import describe_trained
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
    if config.model.freeze:
        say(f"trained: {describe_trained(trainer.state.model)}; model.freeze excludes the others")
    if trainer.loaders.decoder is not None:
        say(trainer.loaders.decoder.describe())
    if config.precision.mode == "fp16" and not on_gpu:
        say(f"warning: {SLOW_ON_CPU}")
    for warning in (*config.warnings, *plan.warnings):
        say(f"warning: {warning}")
    if run.resume_from is not None:
        say(f"continuing {run.path} from step {trainer.state.step}")
