"""Turns faults of the machine into messages with a remedy."""

import pytest

from pipeline.training.faults import explain_fault

LIBRARY = "/cache/a b/kernel.so: failed to map segment from shared object: Operation not permitted"


@pytest.mark.parametrize(
    "error",
    [
        ImportError(LIBRARY),  # DALI's library
        OSError(LIBRARY),
        RuntimeError(f"OSError: {LIBRARY}.  The most common reason"),  # as torch's compiler wraps it
    ],
)
def test_a_library_on_a_file_system_without_programs(error: Exception):
    message = str(explain_fault(error))
    assert message.startswith("/cache/a b/kernel.so: ") and "noexec" in message
    assert "XDG_CACHE_HOME" in message and "TMPDIR" in message


def test_the_end_of_memory_inside_dali_is_told():
    """The reason stands in the last line of its message."""
    error = RuntimeError(
        "Critical error in pipeline:\nError in CPU operator `erase`,\nencountered:\nstd::bad_alloc"
    )
    assert "out of memory (std::bad_alloc)" in str(explain_fault(error))


def test_another_import_error_is_a_bug():
    assert explain_fault(ImportError("cannot import name 'x'")) is None
