"""Does some work for each of many items, in threads or in processes, with a progress bar on a terminal."""

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from statistics import median
from typing import Any

from PIL import UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.data.files.image_formats import NO_IMAGE
from pipeline.errors import Stopped
from pipeline.process.cores import usable_cores
from pipeline.process.worker import Worker, WorkerLost

# Items that a thread takes at once: enough to hide the overhead of a task, few enough to balance the threads;
# and those that a process is sent at once.
_CHUNK, _SENT = 64, 256
# items that are timed, and the seconds below which one is quick
_TIMED, _QUICK_S = 8, 5e-4
# Processes pay if each has so many quick items; more processes than these wait for the one that feeds them.
_LEAST_SHARE, _MOST_PROCESSES = 2048, 8
_FEW_CORES = 3  # up to as many, the start of processes costs what they gain

Work = Callable[[Any], Any]
Tasks = Sequence[tuple[int, Any]]  # items, each with what the work takes
Within = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Portable:
    """How work is done in other processes.

    Attributes:
        keep: takes each item with its result, in this process.
        task_of: returns what the work takes for an item; called in this process.
        most: processes, at most; default: as many as threads.
    """

    keep: Callable[[int, Any], object] = lambda item, result: None
    task_of: Callable[[int], Any] = lambda item: item
    most: int | None = None


@dataclass(frozen=True)
class _Share:
    """Does some tasks, wherever it is.

    Attributes:
        work: done for each task.
        within: makes the context of the work.
    """

    work: Work
    within: Within

    def __call__(self, tasks: Tasks) -> tuple[dict[int, str], dict[int, Any]]:
        """Return the reasons of the items that failed, and the results of the others. The context is entered
        already."""
        failed, results = {}, {}
        for item, task in tasks:
            try:
                results[item] = self.work(task)
            except Exception as error:
                failed[item] = reason_of(error)
        return failed, results

    def alone(self, tasks: Tasks) -> tuple[dict[int, str], dict[int, Any]]:
        """Do the same in a process without other threads."""
        with self.within():
            return self(tasks)


def try_all(
    items: Sequence[int],
    work: Work,
    num_threads: int,
    description: str,
    chunk_size: int = _CHUNK,
    *,
    portable: Portable | None = None,
    within: Within = nullcontext,
) -> dict[int, str]:
    """Do some work for every item, with a progress bar on a terminal.

    Pillow decodes large images without Python's lock, and threads that wait for a file system do not hold it.
    But small images that are at hand spend their time in that lock, for which more than two threads only
    fight: on 2 idle cores 60,000 files of 32x32 took 5.5 s in two threads, 7.6 s in four and 9.6 s in eight;
    and the main thread, which imports torch meanwhile, fights for it too. So the first few items are timed.
    Quick work that can be pickled is done in processes, if there are cores and items enough for them.

    Args:
        items: numbers of the items.
        work: done for each number, or for its task.
        num_threads: to work in, at most.
        description: text of the progress bar.
        chunk_size: items that a thread takes at once; 1 if the work for one takes long.
        portable: given, the work may be done in other processes; it and `within` can be pickled then.
        within: makes a context for the work, in each process.

    Returns:
        The reason for each item whose work raised an exception, in ascending order of the items.

    Raises:
        Stopped: Ctrl-C; its `partial` is what would be returned, of the items so far.
    """
    failed: dict[int, str] = {}
    here, ways = _Share(work, within), portable or Portable()

    def take(share: Callable[[Tasks], Any], chunk: Sequence[int]) -> int:
        some_failed, results = share([(item, ways.task_of(item)) for item in chunk])
        failed.update(some_failed)
        for item, result in results.items():
            ways.keep(item, result)
        return len(chunk)

    with _progress_bar() as progress, within():
        task = progress.add_task(description, total=len(items))
        try:
            timed = items[: _TIMED if chunk_size > 1 else 0]
            is_quick = _is_quick(timed, lambda item: take(here, [item]))
            progress.advance(task, len(timed))
            left = items[len(timed) :]
            count = _num_processes(len(left), ways.most or num_threads) if is_quick and portable else 1
            num_threads = count if count > 1 else min(num_threads, 2) if is_quick else num_threads
            size = _SENT if count > 1 else chunk_size
            chunks = [left[start : start + size] for start in range(0, len(left), size)]
            with _in_processes(here, count) as share:
                _do_chunks(chunks, partial(take, share), num_threads, partial(progress.advance, task))
        except KeyboardInterrupt:
            raise Stopped(failed) from None
    return dict(sorted(failed.items()))


def _do_chunks(
    chunks: Sequence[Sequence[int]],
    work: Callable[[Sequence[int]], int],
    num_threads: int,
    advance: Callable[[int], None],
) -> None:
    """Do the work for each chunk, in threads, and tell how many items are done."""
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for done in pool.map(work, chunks):
                advance(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
            raise


@contextmanager
def _in_processes(here: _Share, count: int) -> Iterator[Callable[[Tasks], Any]]:
    """Return a function that does tasks in one of COUNT processes, or with one process in this one.

    What a process that was lost should have done is done here.
    """
    if count == 1:
        yield here
        return
    idle: SimpleQueue[Worker | None] = SimpleQueue()
    workers: list[Worker] = []
    function = pickle.dumps(here.alone)

    def share(tasks: Tasks) -> Any:
        worker = idle.get()
        try:
            if worker is None:
                return here(tasks)
            return worker.call(function, tasks)
        except WorkerLost:
            worker = None
        finally:
            idle.put(worker)
        return here(tasks)

    try:
        for _ in range(count):
            with suppress(WorkerLost):  # fewer, then, or none
                workers.append(Worker.take())
        for place in range(count):
            idle.put(workers[place] if place < len(workers) else None)
        yield share
    finally:
        for worker in workers:
            worker.give_back()


def reason_of(error: Exception) -> str:
    """Return in a few words why a file could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return NO_IMAGE
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _num_processes(num_items: int, most: int) -> int:
    cores = usable_cores()
    if cores <= _FEW_CORES:
        return 1
    return max(min(cores, most, num_items // _LEAST_SHARE, _MOST_PROCESSES), 1)


def _is_quick(items: Sequence[int], work: Callable[[int], object]) -> bool:
    """Do the work for some items, and return True if each takes little time."""
    seconds = []
    for item in items:
        began = time.perf_counter()
        work(item)
        seconds.append(time.perf_counter() - began)
    return bool(seconds) and median(seconds) < _QUICK_S  # the first one may import a decoder


def _progress_bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
