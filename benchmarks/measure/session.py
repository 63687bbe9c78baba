"""Gives every benchmark its options, device, data, progress line and records."""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.measure.describe import describe_config, describe_machine
from benchmarks.measure.options import QUICK, merge, num_steps, num_windows, read_arguments
from benchmarks.measure.timing import StoppedEarly, Timing, Workload, time_interleaved
from benchmarks.measure.workloads import batches_ahead
from benchmarks.publish import columns, tables
from benchmarks.publish.about_folder import name_of_images
from benchmarks.publish.records import RESULTS, Baseline, Benchmark, Record, RecordKeywords, append, read
from pipeline.config import Config, FileData, load_config
from pipeline.data import FileSet, Splits, load_splits
from pipeline.data.loaders.decoder import choose_decoder
from pipeline.distributed.processes import Processes, connect
from pipeline.errors import EXIT_INTERRUPTED, UserError
from pipeline.process.interrupt import keep_results
from pipeline.run.environment import describe_environment
from pipeline.training.build import set_backends

_PLAIN_WIDTH = 180  # columns of a table without a terminal
_FREQUENT = ("round", "warming up")  # lines of which many come, one a window
_PAUSE_S = 10.0
# benchmarks whose accuracy counts: they need the images of the recipe
_WHOLE_RUNS = ("time-to-accuracy", "peers")
# keys of `data` that determine the images and labels
_DATA_KEYS = {
    *("dataset", "root", "cache_dir", "holdout", "mean", "std", "image_size", "num_classes", "num_samples"),
    *("train_folder", "test_folder", "classes", "train_list", "test_list", "class_names", "on_bad_image"),
    *("train_shards", "test_shards", "image_key", "label_key"),
    *("cache_below", "eval_image_size", "eval_crop"),
}


@dataclass
class Session:
    """One benchmark run.

    Attributes:
        recipe, overrides: the config that all variants start from.
        processes: this process and the others.
        options: parsed command line.
        command: the command line, for the records.
        records: made so far.
    """

    recipe: str
    overrides: list[str]
    processes: Processes
    options: argparse.Namespace
    command: str
    console: Console
    records: list[Record] = field(default_factory=list)
    _splits: dict[str, Splits] = field(default_factory=dict)
    _environment: dict[str, Any] = field(default_factory=dict)
    _written: set[Path] = field(default_factory=set)
    _progress: Progress | None = None
    _shown_at: float = 0.0
    _is_stopped: bool = False

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_stopped(self) -> bool:
        """True if Ctrl-C came, and the results until then were kept."""
        return self._is_stopped

    @property
    def quick(self) -> bool:
        return self.options.quick

    @property
    def windows(self) -> int:
        return num_windows(self.options)

    @property
    def steps(self) -> int:
        return num_steps(self.options, self.on_gpu)

    def lead_in(self, config: Config) -> int:
        """Return the number of untimed steps before a timed window; at most the steps of a window."""
        return 1 if self.quick else min(batches_ahead(config), self.steps)

    def config(self, *overrides: str) -> Config:
        """Return the recipe's config with the user's overrides, then these, which win.

        Raises:
            UserError: a key is wrong, or about.json in data.root is damaged: told before anything is timed.
        """
        config = load_config(self.recipe, merge(self.overrides, overrides))
        name_of_images(config)
        return config

    def name_of_images(self, config: Config) -> str | None:
        """Return the name that `--data` or about.json gives to the images of a folder; None without both."""
        return getattr(self.options, "data", None) or name_of_images(config)

    def check_images_have_a_name(self, config: Config) -> None:
        """Check that a record of an accuracy names its images.

        Raises:
            UserError: it does not; or `--data` names images that have a name.
        """
        of_files = isinstance(config.data, FileData)
        if not of_files and getattr(self.options, "data", None):
            raise UserError(
                f"--data: data.dataset={config.data.dataset} names the images itself; leave it out"
            )
        if of_files and self.options.record and self.name_of_images(config) is None:
            option = "--data NAME, such as CIFAR-10" if hasattr(self.options, "data") else ""
            about = 'a file about.json in data.root, such as {"name": "CIFAR-10"}'
            raise UserError(
                f"--record: data.dataset={config.data.dataset} does not name the images that an accuracy is "
                f"of; give {' or '.join(filter(None, (option, about)))}"
            )

    def splits(self, config: Config) -> Splits:
        """Return the data set of a config, which is read once."""
        data = config.data.model_dump(include=_DATA_KEYS)
        key = json.dumps([data, config.seed])
        if key not in self._splits:
            main = self.processes.is_main
            self._splits[key] = self.processes.main_first(
                lambda: load_splits(config.data, config.seed, is_main=main)
            )
        return self._splits[key]

    def streams(self, config: Config) -> bool:
        """Return True if the images of a config stay in their files."""
        return isinstance(self.splits(config).train, FileSet)

    def environment(self, config: Config) -> dict[str, Any]:
        """Return what is known of this process and its machine; it is found out once."""
        if not self._environment:
            self._environment = describe_environment(config, self.device, self.processes.shard.world_size)
        return self._environment

    def use_synthetic_images_if_missing(self) -> None:
        """Warn and use random images of the same size if the recipe's data set is not on this machine."""
        config = self.config()
        try:
            self.splits(config)
        except UserError as error:
            size = config.image_size
            on_disk = isinstance(config.data, FileData)
            memory = ", but from memory: decoding files is not timed" if on_disk else ""
            self.say(f"warning: {error}")
            replacement = f"random images of {size}x{size} pixels"
            self.say(f"warning: timing {replacement} instead, through the same loader{memory}")
            few = [item for item in QUICK if self.quick and item.startswith("data.num_samples=")]
            synthetic = ["data.dataset=synthetic", f"data.image_size={size}", "data.holdout=0", *few]
            self.overrides = merge(self.overrides, synthetic)

    def keep_one_image_size(self) -> None:
        """Report and time only the last image size of a recipe whose images grow during training."""
        config = self.config()
        if config.augment.progressive and isinstance(config.data, FileData):
            sizes = [size for _, size in config.augment.progressive]
            in_turn = ", ".join(map(str, sizes))
            self.say(
                f"timing images of {config.image_size} pixels, not of {in_turn} in turn; to time others, set "
                f"augment.progressive=[] data.image_size={sizes[0]}"
            )
            self.overrides = merge(self.overrides, ["augment.progressive=[]"])

    def say(self, text: str) -> None:
        """Print a message, on the main process alone."""
        if self.processes.is_main:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """Show the present work: in the progress line, or as a new line if there is no terminal.

        Of rounds, which are many, only some get a line, at least 10 s apart.

        Raises:
            KeyboardInterrupt: Ctrl-C came before, and the results until then have been kept.
        """
        if self._is_stopped:
            raise KeyboardInterrupt
        now = time.monotonic()
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=text)
        elif not text.startswith(_FREQUENT) or now > self._shown_at + _PAUSE_S:
            self._shown_at = now
            self.say(text)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show a line with a clock inside this context."""
        if not (self.processes.is_main and self.console.is_terminal):
            yield
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        ) as progress:
            progress.add_task("", total=None)
            self._progress = progress
            try:
                yield
            finally:
                self._progress = None

    def time(self, workloads: Sequence[Workload], steps: int | Sequence[int] | None = None) -> list[Timing]:
        """Time workloads in turn, with the windows and steps of the options.

        After Ctrl-C the timings hold the complete rounds; the next call, and `show`, raise KeyboardInterrupt.

        Raises:
            StoppedEarly: Ctrl-C came before the first round was complete; its windows have been printed.
        """
        keep_results()
        try:
            timings = time_interleaved(workloads, self.windows, steps or self.steps, self.device, self.show)
        except StoppedEarly as stopped:
            rates = [f"{each.name} {each.images_per_sec.median:,.0f} images/sec" for each in stopped.timings]
            self.say(f"stopped in the first round; nothing to compare yet: {', '.join(rates) or 'no window'}")
            raise
        rounds = len(timings[0].step_s) if timings else self.windows
        if rounds < self.windows:
            self.stop(f"stopped after {rounds} of {self.windows} rounds; these are their results")
        return timings

    def stop(self, message: str) -> None:
        """Note, and say, that Ctrl-C came and that results before it are kept. The exit code is 130 then."""
        self._is_stopped = True
        self.say(message)

    def record(
        self,
        benchmark: Benchmark,
        variant: str,
        config: Config,
        timing: Timing | None,
        baseline: Baseline | None = None,
        **fields: Unpack[RecordKeywords],
    ) -> None:
        """Make a record, and write it if the user asked for that (`--record`).

        Args:
            benchmark, variant, config, baseline: of the record.
            timing: its windows; None if one event was timed.
            fields: further fields of `Record`, over those that follow from the config.
        """
        environment = self.environment(config)
        streamed = config.data.loader != "synthetic" and self.streams(config)
        measured: dict[str, Any] = {
            **dict(describe_config(self._with_decoder(config, streamed), environment, streamed)),
            **dict(describe_machine(environment)),
            "images_per_sec": timing.images_per_sec if timing else None,
            "step_ms": timing.step_ms if timing else None,
            "peak_memory_bytes": None,
            "baseline": baseline,
            "planned": self.windows if timing and len(timing.step_s) < self.windows else None,
            "data": self.name_of_images(config),
            "utc": environment["utc"],
            "command": self.command,
        }
        keep_results()
        record = Record(**{"benchmark": benchmark, "variant": variant, **measured, **fields})
        self.records.append(record)
        if self.options.record and self.processes.is_main:
            self._written.update(append([record]))  # at once: the record is kept if a later variant fails

    def take(self, records: Sequence[Record]) -> None:
        """Take records of an earlier command; with `--record`, write those that are not written yet."""
        self.records += records
        if self.options.record and self.processes.is_main:
            written = read()
            self._written.update(append([record for record in records if record not in written]))

    def _with_decoder(self, config: Config, streamed: bool) -> Config:
        """Return the config with the decoder that `auto` chose: a record must name it."""
        if not streamed or config.data.loader != "dali":
            return config
        decoder = choose_decoder(config, self.device).name
        return config.model_copy(update={"data": config.data.model_copy(update={"decoder": decoder})})

    def print_tables(self) -> None:
        """Print the tables of all records."""
        for table in tables.tables_of(self.records):
            self.print(table)

    def close(self) -> None:
        """Print the paths of the records."""
        for path in sorted(self._written):
            self.say(f"recorded in {path}")

    def print(self, table: columns.Table) -> None:
        if self.processes.is_main:
            self.console.print(columns.to_rich(table))


def run(work: Callable[[Session], int | None], name: str, options: argparse.Namespace) -> int:
    """Run a benchmark in a new session, on a new stream: a step cannot be captured on the default one.

    Returns:
        The exit code.

    Raises:
        UserError: the config, or a combination of options, is bad.
        TrainingError: the measurement cannot be trusted.
    """
    recipe, overrides = read_arguments(options)
    if options.record:
        # fails before anything is measured if records cannot be written
        with tempfile.TemporaryFile(dir=RESULTS):
            pass
    config = load_config(recipe, overrides)
    set_backends(config)
    processes = connect(config)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    session = Session(recipe, overrides, processes, options, command, console)
    with torch.cuda.stream(torch.cuda.Stream(processes.device) if session.on_gpu else None):
        if name != "startup":
            session.keep_one_image_size()
        if name not in _WHOLE_RUNS:
            session.use_synthetic_images_if_missing()
        device = torch.cuda.get_device_name(session.device) if session.on_gpu else "CPU"
        windows = "" if name in _WHOLE_RUNS else f", {session.windows} windows"
        session.say(f"{name}: {recipe}, {processes.shard.world_size} x {device}{windows}")
        code = _work(session, work)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code or (EXIT_INTERRUPTED if session.is_stopped else 0)


def _work(session: Session, work: Callable[[Session], int | None]) -> int:
    """Return the exit code of a benchmark. If it is stopped, show the variants that are complete."""
    try:
        with session.progress():
            return work(session) or 0
    except KeyboardInterrupt:
        session.print_tables()
        raise
    finally:
        session.close()
