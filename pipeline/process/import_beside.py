"""Imports modules in a thread, while the main thread mostly waits for a GPU."""

import importlib
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress

_running: list[threading.Thread] = []
_SWITCH_S = 1e-4  # Python's usual 5 ms, waited for in each call to torch, would slow training


def import_beside(names: Iterable[str]) -> None:
    """Import modules in a thread, which does not keep the process alive.

    Until it has ended, threads give up Python's lock every 0.1 ms. Earlier threads are waited for. A module
    that cannot be imported is left to whoever needs it, who will say so.

    Args:
        names: of the modules, in this order.
    """
    wait_for_imports()

    def work() -> None:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            for name in names:
                with suppress(Exception):
                    importlib.import_module(name)
        finally:
            sys.setswitchinterval(usual)

    _running.append(threading.Thread(target=work, name="imports", daemon=True))
    _running[-1].start()


def wait_for_imports() -> None:
    """Wait until the thread of `import_beside` has ended."""
    while _running:
        _running.pop().join()
