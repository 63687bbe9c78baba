"""Train a recipe beside the training scripts of others, on the same class folders, one after the other.

Each program is started as its user starts it, in the folder of its own checkout, and with its fastest
settings. Network, image size, batch, epochs, augmentation, precision and learning rate are those of the
recipe, as far as a program allows: where it does not, the table says so. In each round every program trains
once.

Exit code: 1 if `--at-least` is missed or a program failed, 130 after Ctrl-C or SIGTERM; all keep the runs
done so far.
"""

import hashlib
import shlex
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measure.machine import hash_of_folder
from benchmarks.measure.options import merge
from benchmarks.measure.session import Session
from benchmarks.measure.started_run import start
from benchmarks.peers.choose import read_programs
from benchmarks.peers.comparison import Contest, record, report
from benchmarks.peers.folder_program import Program
from benchmarks.peers.kept_runs import KeptRuns
from benchmarks.peers.quickres_train import NAME as OURS
from benchmarks.peers.task import Task, check_config, share_folder
from benchmarks.peers.watched import watch
from benchmarks.publish.peer_runs import PeerRun
from pipeline.config import Config
from pipeline.data.datasets.counts import count_images
from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, TrainingError, UserError
from pipeline.process.cores import usable_cores
from pipeline.process.interrupt import keep_results

_STEP_EPOCHS = 3  # of the step on a fixed batch
_READERS = Path(__file__).parents[1] / "peers"  # they say what a figure of a kept run means
_PLAIN = ("log.explain=false", "log.report=false", "log.tensorboard=false")


def run(session: Session) -> int:
    """Run the programs.

    Returns:
        The exit code.
    """
    config = _check_options(session)
    with tempfile.TemporaryDirectory() as folder:
        task = _make_task(session, config, Path(folder))
        programs = read_programs(session.options, session.recipe, session.overrides)
        contest = Contest(task, tuple(programs), session.options.seeds)
        for program in programs:
            # both refuse what the program cannot do
            program.command(task, 0, Path(folder))
            contest.note_parameters(program.name, program.parameters(task))
        kept = KeptRuns(session.options.keep, {p.name: _key(session, task, p) for p in programs})
        _take_over(contest, kept)
        failure = None
        try:
            _train(session, contest, kept)
        except KeyboardInterrupt:
            session.stop(f"stopped after {contest.num_runs} of {contest.num_planned} runs")
        except TrainingError as error:
            failure = error
    reached = False
    if contest.num_runs:
        summaries = contest.summaries()
        record(session, contest, summaries)
        session.print_tables()
        reached = report(session, contest, summaries)
    if failure is not None:
        raise failure
    if session.is_stopped:
        return EXIT_INTERRUPTED
    return 0 if session.options.at_least is None or reached else EXIT_FAILURE


# --- before the runs ----------------------------------------------------------------------------------------


def _check_options(session: Session) -> Config:
    """Return the config of our runs.

    Raises:
        UserError: an option or a key cannot be used.
    """
    options, world_size = session.options, session.processes.shard.world_size
    for name in ("windows", "steps"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: whole runs are timed here; leave it out, and give --epochs")
    if session.quick:
        raise UserError("--quick: a smoke test has no class folders; leave it out, and give a small folder")
    if options.at_least is not None and not 0 < options.at_least < float("inf"):
        raise UserError(f"--at-least: expected a factor above 0, such as 2.5, got {options.at_least}")
    if options.at_least is not None and options.seeds < 2:
        raise UserError("--at-least: one run has no σ to compare accuracies with; give --seeds 2 or more")
    if world_size > 1:
        raise UserError(
            f"peers: starts its programs from one process, not from {world_size}; start it without "
            "accelerate launch"
        )
    config = session.config(f"duration={options.epochs}ep")
    check_config(config)
    session.environment(config)  # takes too long for the second that is left after Ctrl-C
    return config


def _make_task(session: Session, config: Config, folder: Path) -> Task:
    links = folder / "images"
    links.mkdir()
    counts = count_images(config.data, config.seed)
    task = Task(
        config=config,
        data=share_folder(config, links),
        counts=counts,
        epochs=session.options.epochs,
        workers=session.options.workers or usable_cores(),
        device=session.device.type,
    )
    if not task.full_steps:
        raise UserError(
            f"data.batch_size: {task.batch_size} is more than the {counts.train} training images; give fewer"
        )
    return task


# --- the runs -----------------------------------------------------------------------------------------------


def _train(session: Session, contest: Contest, kept: KeptRuns) -> None:
    """Train every program with every seed, in rounds; runs that were kept are left out."""
    if contest.step_rate is None:
        session.show("the step alone, on one fixed batch")
        contest.step_rate = _step_rate(session, contest.task)
        if contest.step_rate is not None:
            kept.add_step(OURS, contest.step_rate)
    contest.last_end = time.perf_counter()
    for number in range(contest.planned):
        for program in contest.programs:
            if number < len(contest.runs[program.name]):
                continue
            run, parameters = _run(session, contest, program, contest.task.config.seed + number)
            contest.add(program.name, run, parameters)
            keep_results()
            kept.add(program.name, run, parameters)
            rate = f"{run.rate:,.0f} images/sec, " if run.rate else ""
            session.say(
                f"{program.name}, run {number + 1} of {contest.planned}: {run.accuracy:.2%}, {rate}"
                f"{run.wall_s:.1f} s{_left(contest)}"
            )


def _key(session: Session, task: Task, program: Program) -> str:
    """Return a key that changes with the settings of a program's runs, its source and that of its reader.

    Another machine of the same kind has the same key, wherever the checkouts and the images are there.
    """
    machine = torch.cuda.get_device_name(session.device) if session.on_gpu else "CPU"
    cores, versions = usable_cores(), {"torch": torch.__version__, **program.versions()}
    words = program.typed(task, task.config.seed, Path("output"))
    places = (str(task.data), f"data.root={getattr(task.config.data, 'root', '')}")
    images = replace(task.counts, note="")  # it names the folder
    parts = [*(word for word in words if word not in places), str(images), machine, str(cores)]
    sources = [program.source_hash(), hash_of_folder(_READERS, "*.py")]
    return hashlib.sha256("\0".join([*parts, str(versions), *sources]).encode()).hexdigest()[:16]


def _take_over(contest: Contest, kept: KeptRuns) -> None:
    """Take the runs that were kept, as many as are planned."""
    for item in kept.read():
        if item.run is None:
            contest.step_rate = item.step_rate
        elif len(contest.runs[item.program]) < contest.planned:
            contest.add(item.program, item.run, item.parameters)


def _left(contest: Contest) -> str:
    left = contest.left_s
    if not left:
        return ""
    return f"; about {f'{left:.0f} s' if left < 120 else f'{left / 60:.0f} min'} left"


def _run(session: Session, contest: Contest, program: Program, seed: int) -> tuple[PeerRun, int | None]:
    """Run a program once, and remove its files.

    Returns:
        The run, and the number of the network's parameters, if the program tells.
    """
    task, name = contest.task, program.name
    log, where = program.new_log(task), f"round {len(contest.runs[name]) + 1} of {contest.planned}: {name}"

    def read(line: str, at_s: float) -> None:
        log.read(line, at_s)
        epoch = min(len(log.epochs) + 1, task.epochs)
        session.show(f"{where}, epoch {epoch} of {task.epochs}{_left(contest)}")

    # a program that is stopped may still write
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = program.command(task, seed, Path(folder))
        used = watch(command, program.folder, read, session.device, **program.variables)
        log.finish(Path(folder))
    if len(log.epochs) != task.epochs:
        raise TrainingError(
            f"{name}: its log shows {len(log.epochs)} evaluations, and {task.epochs} were expected; if "
            "--peer-flags asks for no others, this version of the program has another form of log"
        )
    run = PeerRun(
        seed=seed if program.takes_seed else None,
        command=shlex.join(program.typed(task, seed, Path(folder))),
        wall_s=used.wall_s,
        cpu_s=used.cpu_s,
        peak_memory_bytes=used.peak_memory_bytes,
        epochs=tuple(log.epochs),
    )
    return run, log.parameters


def _step_rate(session: Session, task: Task) -> float | None:
    """Return the images per second of our step on one fixed batch; None if that cannot be timed."""
    short = [f"duration={min(task.epochs, _STEP_EPOCHS)}ep", "data.loader=synthetic", *_PLAIN]
    recipe = str(Path(session.recipe).resolve())
    try:
        return start(recipe, merge(session.overrides, short)).result.images_per_sec.median
    except TrainingError as error:
        session.say(f"warning: the step alone could not be timed: {error}")
        return None
