"""What the machine can do to a run, in one message: memory that is used up, a full or unwritable disk, a folder that has gone."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.data.datasets.counts import count_images, num_classes_of
from pipeline.errors import OutOfMemory, Preempted, TrainingError, UserError
from pipeline.profiling.memory_estimate import estimate_memory, what_fits

_MANY_CLASSES = 1000  # for an estimate where the data set is not there: the head is small
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate|cannot allocate|allocation failed|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
_NO_SHARED_MEMORY = re.compile(
    r"out of shared memory|unable to (write to|open|resize|allocate) (shared memory|file <)", re.IGNORECASE
)
_REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        "free space there, or choose another place (log.dir, data.cache_dir, XDG_CACHE_HOME)",
    ),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM),
        "choose a place that you can write to (log.dir, data.cache_dir, XDG_CACHE_HOME)",
    ),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EIO, errno.ENOTCONN),
        "is its disk still there? Put it back",
    ),
    errno.EFBIG: "allow larger files (ulimit -f)",
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n), or lower data.num_threads"
    ),
}
# without a file these say nothing of the machine, and a traceback says more
_NEED_A_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def explained(config: Config | None = None, num_processes: int = 1) -> Iterator[None]:
    """Turn the machine's faults into errors of ours; bugs pass through with their traceback.

    Args:
        config: of the run; None where nothing is trained.
        num_processes: that share its batch.

    Raises:
        OutOfMemory, TrainingError: with one message, which names file or key and the remedy.
    """
    hook = threading.excepthook

    def tell_of_thread(arguments: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread keeps its error, which the next one to write then raises, and would print a traceback besides
        if getattr(arguments.thread, "exception", None) is not arguments.exc_value:
            hook(arguments)

    threading.excepthook = tell_of_thread
    try:
        yield
    except (UserError, TrainingError, Preempted):
        raise
    except Exception as error:
        told = explain_fault(error, config, num_processes)
        if told is None:
            raise
        raise told from error
    finally:
        threading.excepthook = hook


def explain_fault(
    error: BaseException, config: Config | None = None, num_processes: int = 1
) -> TrainingError | None:
    """The error in the user's words, by itself or by what it came from; None where it is a bug."""
    again = ". What was saved is kept; start again with resume=auto" if config is not None else ""
    for cause in _causes(error):
        text = (str(cause) or type(cause).__name__).splitlines()[0]
        if isinstance(cause, RuntimeError | OSError) and _NO_SHARED_MEMORY.search(str(cause)):
            return OutOfMemory(
                f"shared memory is used up ({text}); enlarge /dev/shm, or lower data.num_threads or data.prefetch{again}"
            )
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and _NO_MEMORY.search(text)):
            return OutOfMemory(_out_of_memory(cause, text, config, num_processes))
        if (
            isinstance(cause, OSError)
            and cause.errno in _REMEDIES
            and (cause.filename or cause.errno not in _NEED_A_FILE)
        ):
            file = os.fsdecode(cause.filename) if isinstance(cause.filename, str | bytes | Path) else "a file"
            remedy = (
                _REMEDIES[cause.errno]
                if config is not None or cause.errno not in _NEED_A_FILE
                else "give a place that can be used"
            )
            return TrainingError(f"{file}: {os.strerror(cause.errno)}; {remedy}{again}")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from: torch's compiler wraps what happens inside it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _out_of_memory(error: BaseException, text: str, config: Config | None, num_processes: int) -> str:
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "cuda" in str(error).lower()
    where = "the GPU is" if on_gpu else "this machine is"
    if config is None:
        return (
            f"{where} out of memory ({text}); use runtime.device=cpu (predict: --device cpu), a smaller data.eval_batch_size (lr-find, "
            "bench: data.batch_size), fewer images, or a machine with more"
        )
    size = config.data.batch_size
    told = f"{where} out of memory at data.batch_size={size} ({text}); "
    try:
        return told + _what_fits(config, num_processes, on_gpu)
    except Exception:  # an estimate must not hide what it is about
        return f"{told}use data.batch_size={max(size // 2, 1)} with optimizer.lr={config.optimizer.lr / 2:g}, or optimizer.accumulate=2"


def _what_fits(config: Config, num_processes: int, on_gpu: bool) -> str:
    """By estimate, beside what other programs hold of the memory."""
    try:
        num_classes = num_classes_of(config)
    except UserError:
        num_classes = _MANY_CLASSES
    kept = on_gpu and config.data.loader in ("dali", "fused") and config.data.dataset != "folder"
    counts = count_images(config.data, config.seed) if kept else None
    memory = estimate_memory(
        config, num_processes, num_classes, counts.train + counts.held_out + counts.test if counts else 0
    )
    if on_gpu and torch.cuda.is_available():
        available = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_processes
        if not on_gpu and memory.total <= available:
            return (
                f"a batch takes about {memory.total >> 20:,} MiB by estimate, and a process has {available >> 20:,}: end other programs, "
                "lower data.num_threads, or use smaller or fewer images (data.image_size, data.num_samples)"
            )
    return what_fits(config, num_processes, memory, available)
