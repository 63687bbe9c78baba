"""Turns faults of the machine into one message, such as no memory, a full disk or a missing folder."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.config import Config, FileData
from pipeline.data.datasets.counts import count_images, num_classes_of
from pipeline.errors import OutOfMemory, Preempted, TrainingError, UserError, first_line
from pipeline.process.libraries import address_limit, explain_library
from pipeline.profiling.memory_estimate import estimate_memory, what_fits

_MANY_CLASSES = 1000  # for an estimate if the data set is missing; the head is a small part of the network
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate|cannot allocate|allocation failed|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
_BAD_ALLOC = "std::bad_alloc"
_NO_SHARED_MEMORY = re.compile(
    r"out of shared memory|unable to (write to|open|resize|allocate) (shared memory|file <)", re.IGNORECASE
)
_PLACES = "(log.dir, data.cache_dir, XDG_CACHE_HOME)"
_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): f"free space there, or choose another place {_PLACES}",
    (errno.EROFS, errno.EACCES, errno.EPERM): f"choose a place that you can write to {_PLACES}",
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ESTALE,
        errno.EIO,
        errno.ENOTCONN,
    ): "check that its disk is connected",
    (errno.EFBIG,): "allow larger files (ulimit -f)",
    (errno.EMFILE, errno.ENFILE): "allow more open files (ulimit -n), or lower data.num_threads",
}
_REMEDY_OF = {number: remedy for numbers, remedy in _REMEDIES.items() for number in numbers}
# without a file, these errors may be bugs, and a traceback says more
_NEED_A_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def explained(config: Config | None = None, num_processes: int = 1) -> Iterator[None]:
    """Turn faults of the machine into our errors; bugs keep their traceback.

    Args:
        config: of the run; None if nothing is trained.
        num_processes: number of processes that share the batch.

    Raises:
        OutOfMemory, TrainingError: with one message, which names the file or the key, and the remedy.
    """
    hook = threading.excepthook

    def print_error_of_thread(arguments: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread keeps its error, and the next write raises it: print no traceback as well
        if getattr(arguments.thread, "exception", None) is not arguments.exc_value:
            hook(arguments)

    threading.excepthook = print_error_of_thread
    try:
        yield
    except (UserError, TrainingError, Preempted):
        raise
    except Exception as error:
        fault = explain_fault(error, config, num_processes)
        if fault is None:
            raise
        raise fault from error
    finally:
        threading.excepthook = hook


def explain_fault(
    error: BaseException, config: Config | None = None, num_processes: int = 1
) -> TrainingError | None:
    """Return the message for an error or for one of its causes; None if it is a bug."""
    resume = ". The saved checkpoints are kept; start again with resume=auto" if config is not None else ""
    for cause in _causes(error):
        text = first_line(cause)
        if isinstance(cause, RuntimeError | OSError) and _NO_SHARED_MEMORY.search(str(cause)):
            return OutOfMemory(
                f"shared memory is used up ({text}); enlarge /dev/shm, or lower data.num_threads or "
                f"data.prefetch{resume}"
            )
        if isinstance(cause, RuntimeError) and _BAD_ALLOC in str(cause):  # DALI says so at the end
            text = _BAD_ALLOC
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and _NO_MEMORY.search(text)):
            return OutOfMemory(_out_of_memory(cause, text, config, num_processes))
        if (fault := explain_library(cause)) is not None:
            return type(fault)(f"{fault}{resume}")
        if isinstance(cause, OSError) and (message := _explain_os_error(cause, training=config is not None)):
            return TrainingError(f"{message}{resume}")
    return None


def _explain_os_error(error: OSError, *, training: bool) -> str | None:
    """Return the file, the reason and a remedy; None if the error may be a bug."""
    number = error.errno or 0
    needs_file = number in _NEED_A_FILE
    if number not in _REMEDY_OF or (needs_file and not error.filename):
        return None
    file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | Path) else "a file"
    remedy = _REMEDY_OF[number] if training or not needs_file else "give a place that can be used"
    return f"{file}: {os.strerror(number)}; {remedy}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, one after another: torch's compiler wraps errors raised inside it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _out_of_memory(error: BaseException, text: str, config: Config | None, num_processes: int) -> str:
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "cuda" in text.lower()
    device = "the GPU is" if on_gpu else "this machine is"
    if config is None:
        return (
            f"{device} out of memory ({text}); use runtime.device=cpu (predict: --device cpu), a smaller "
            "data.eval_batch_size (lr-find, bench: data.batch_size), fewer images, or a machine with more "
            "memory"
        )
    size = config.data.batch_size
    message = f"{device} out of memory at data.batch_size={size} ({text}); "
    try:
        return message + _remedy(config, num_processes, on_gpu)
    except Exception:  # an error in the estimate must not hide this one
        smaller = f"data.batch_size={max(size // 2, 1)} with optimizer.lr={config.optimizer.lr / 2:g}"
        return f"{message}use {smaller}, or optimizer.accumulate=2"


def _remedy(config: Config, num_processes: int, on_gpu: bool) -> str:
    """Return the changes that make the run fit, by estimate, into the memory that other programs leave."""
    if not on_gpu and (limit := address_limit()):
        return limit
    try:
        num_classes = num_classes_of(config)
    except UserError:
        num_classes = _MANY_CLASSES
    num_images = 0
    if on_gpu and config.data.loader in ("dali", "fused") and not isinstance(config.data, FileData):
        counts = count_images(config.data, config.seed)
        num_images = counts.train + counts.held_out + counts.test
    memory = estimate_memory(config, num_processes, num_classes, num_images)
    if on_gpu and torch.cuda.is_available():
        available = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_processes
    if not on_gpu and memory.total <= available:
        return (
            f"a batch takes about {memory.total >> 20:,} MiB by estimate, and a process has "
            f"{available >> 20:,}: end other programs, lower data.num_threads, or use smaller or fewer "
            "images (data.image_size, data.num_samples)"
        )
    return what_fits(config, num_processes, memory, available)
