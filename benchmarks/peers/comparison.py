"""Compares the runs of several programs: their records, speed factors, and the test of their accuracies."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from benchmarks.measure import cells
from benchmarks.measure.describe import describe_loader, describe_model
from benchmarks.measure.session import Session
from benchmarks.peers.folder_program import Program, count_settings
from benchmarks.peers.quickres_train import NAME as OURS
from benchmarks.peers.task import Task
from benchmarks.publish.peer_runs import AccuracyTest, PeerRun, PeerRuns
from benchmarks.publish.records import Baseline, Spread
from benchmarks.publish.whole_runs import mean_and_deviation
from pipeline.config import FolderData, path_of


@dataclass
class Contest:
    """The runs of all programs.

    Attributes:
        task: that all of them train.
        programs: ours first.
        planned: runs of each program.
        runs: done so far, by the program's name.
        parameters: of the networks, by the program's name, where they are known.
        step_rate: images per second of our step on one fixed batch, if known.
        last_end: end of the last run, in seconds of `time.perf_counter`.
    """

    task: Task
    programs: tuple[Program, ...]
    planned: int
    runs: dict[str, list[PeerRun]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    step_rate: float | None = None
    last_end: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.runs = {program.name: [] for program in self.programs}

    @property
    def num_runs(self) -> int:
        return sum(map(len, self.runs.values()))

    @property
    def num_planned(self) -> int:
        return self.planned * len(self.programs)

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the last run ends; None before the end of the first round. The runs of a
        program are taken to last equally long."""
        if not all(self.runs.values()):
            return None
        left = sum(
            (self.planned - len(runs)) * fmean(run.wall_s for run in runs) for runs in self.runs.values()
        )
        return max(left - (time.perf_counter() - self.last_end), 0.0)

    @property
    def target(self) -> float:
        """The lowest accuracy at the end of a run: all runs reached it."""
        return min(run.accuracy for runs in self.runs.values() for run in runs)

    def add(self, program: str, run: PeerRun, parameters: int | None) -> None:
        """Take a run that has just ended."""
        self.runs[program].append(run)
        self.note_parameters(program, parameters)
        self.last_end = time.perf_counter()

    def note_parameters(self, program: str, parameters: int | None) -> None:
        """Remember the number of a network's parameters, if it is known."""
        if parameters is not None:
            self.parameters[program] = parameters

    def summaries(self) -> dict[str, PeerRuns]:
        """Return the runs of each program that has finished one, with what is known of it, by its name.

        Asks git, and reads the source of each program.
        """
        return {program.name: self._summary(program) for program in self.programs if self.runs[program.name]}

    def _summary(self, program: Program) -> PeerRuns:
        task, runs = self.task, self.runs[program.name]
        words = shlex.split(runs[0].command)
        return PeerRuns(
            runs=tuple(runs),
            planned=self.planned,
            images_per_epoch=program.images_per_epoch(task),
            target=self.target,
            words=len(words) - len(program.log_options),
            settings=count_settings(words) - count_settings([*program.log_options]),
            commit=program.commit(),
            source_hash=program.source_hash(),
            versions=program.versions(),
            has_same_network=not self._other_network(program),
            differences=(*self._other_network(program), *program.differences(task), *_flags(program)),
            step_rate=self.step_rate if program.name == OURS else None,
        )

    def _other_network(self, program: Program) -> list[str]:
        """Return a phrase if the number of its parameters is known to be another than ours."""
        theirs, ours = self.parameters.get(program.name), self.parameters.get(OURS)
        if theirs is None or ours is None or theirs == ours:
            return []
        return [f"another network: {theirs:,} parameters, not {ours:,}"]

    def ratios(self, program: Program) -> list[float]:
        """Return its images per second over ours, of each round."""
        pairs = zip(self.runs[program.name], self.runs[OURS], strict=False)
        return [theirs.rate / ours.rate for theirs, ours in pairs if theirs.rate and ours.rate]


def _flags(program: Program) -> list[str]:
    """Return a phrase about options that the user added to those that follow from the config."""
    return [f"further options: {shlex.join(program.extra)}"] if program.extra else []


def record(session: Session, contest: Contest, summaries: Mapping[str, PeerRuns]) -> None:
    """Keep a record of each program that has finished a run; of others compared with ours.

    Args:
        session: of the benchmark.
        contest: the runs.
        summaries: of them.
    """
    task, data = contest.task, contest.task.config.data
    assert isinstance(data, FolderData), "others are refused before"
    root = path_of("data.root", data.root).resolve()
    name = session.name_of_images(task.config) or root.name
    for program in contest.programs:
        result = summaries.get(program.name)
        if result is None:
            continue
        rates = [run.rate for run in result.runs if run.rate is not None]
        accuracy, deviation = mean_and_deviation(result.accuracies)
        is_ours = program.name == OURS
        session.record(
            *("peers", program.name, task.config, None),
            None if is_ours else _baseline(contest, program),
            images_per_sec=Spread.of(rates) if rates else None,
            step_ms=1e3 * task.batch_size / median(rates) if rates else None,
            model=describe_model(task.config) if is_ours else task.network,
            loader=describe_loader(task.config) if is_ours else program.name,
            world_size=1,
            precision=program.precision(task),
            channels_last=program.channels_last(task),
            compile_mode=program.compile_mode(task),
            peak_memory_bytes=result.peak_memory_bytes,
            accuracy=accuracy,
            accuracy_std=deviation,
            accuracy_n=len(result.runs),
            epochs=task.epochs,
            seeds=tuple(run.seed for run in result.runs if run.seed is not None),
            data=name,
            parameters=contest.parameters.get(program.name),
            peer_runs=result,
        )


def _baseline(contest: Contest, program: Program) -> Baseline | None:
    ratios, ours = contest.ratios(program), [run.rate for run in contest.runs[OURS] if run.rate]
    return Baseline(variant=OURS, images_per_sec=median(ours), ratio=Spread.of(ratios)) if ratios else None


def report(session: Session, contest: Contest, summaries: Mapping[str, PeerRuns]) -> bool:
    """Print how ours compares with each program, and how they differ; the arguments are those of `record`.

    Returns:
        True if ours is as much faster as `--at-least` asks for than each of them, and no accuracy is lower
        by more than two standard errors.
    """
    others = [program for program in contest.programs if program.name != OURS]
    if OURS not in summaries:
        return False
    verdicts = [
        _compare(session, contest, program, summaries) for program in others if program.name in summaries
    ]
    for name, summary in summaries.items():
        if summary.differences:
            session.say(f"{name} differs: {'; '.join(summary.differences)}")
    return len(verdicts) == len(others) and all(verdicts)


def _compare(session: Session, contest: Contest, program: Program, summaries: Mapping[str, PeerRuns]) -> bool:
    """Print one comparison; return True if nothing is missed."""
    ratios, least = contest.ratios(program), session.options.at_least
    ours, theirs = summaries[OURS], summaries[program.name]
    test = AccuracyTest.of(ours.accuracies, theirs.accuracies)
    factor = 1 / median(ratios) if ratios else None
    is_fast = least is None or (factor is not None and factor >= least)
    parts = [
        f"{factor:.2f} × its images/sec" if factor else "no speed after the first epoch",
        *_whole(ours, theirs),
        _describe(test),
    ]
    wanted = "" if least is None else f"; target {least:g} ×: {'reached' if is_fast else 'missed'}"
    session.say(f"{OURS} beside {program.name}: {'; '.join(parts)}{wanted}")
    return is_fast and test.holds is True


def _whole(ours: PeerRuns, theirs: PeerRuns) -> Sequence[str]:
    """Return the factor over whole epochs, if it is known."""
    if not ours.whole_rate or not theirs.whole_rate:
        return []
    return [f"{ours.whole_rate / theirs.whole_rate:.2f} × over whole epochs"]


def _describe(test: AccuracyTest) -> str:
    """Return the verdict on the accuracies.

    >>> _describe(AccuracyTest(difference=-0.01, error=0.004))
    'accuracy -1.00 points, standard error 0.40: lower by more than two standard errors'
    """
    points = f"accuracy {100 * test.difference:+.2f} points"
    if test.error is None:
        return f"{points}, one run: no test"
    lower = "not lower" if test.holds else "lower"
    error = f"standard error {cells.number(100 * test.error)}"
    return f"{points}, {error}: {lower} by more than two standard errors"
