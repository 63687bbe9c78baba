"""Imports the grad-cam library without packages that it needs only for work that nobody asks for here."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

# The library takes names of these as it is imported: of torchvision for examples of preprocessing, of
# scikit-learn for factorising features. Each takes a second to import.
_LEFT_OUT = ("torchvision", "sklearn")


def import_grad_cam() -> ModuleType:
    """Import `pytorch_grad_cam` quickly, and return it.

    While it is imported, stand-ins take the place of the packages that are left out, unless they have been
    imported before. Later imports find the real ones.
    """
    if "pytorch_grad_cam" not in sys.modules:
        with _stand_ins({name for name in _LEFT_OUT if name not in sys.modules}):
            importlib.import_module("pytorch_grad_cam")
    return sys.modules["pytorch_grad_cam"]


@contextmanager
def _stand_ins(packages: set[str]) -> Iterator[None]:
    finder = _Finder(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in list(sys.modules) if name.partition(".")[0] in packages]:
            del sys.modules[name]


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for each module of some packages."""

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        known = name.partition(".")[0] in self._packages
        return ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no content."""


class _StandIn(ModuleType):
    """Takes the place of a module: every name can be imported from it, and none can be used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> NoReturn:
            raise ImportError(f"{self.__name__}.{name} was left out when the grad-cam library was imported")

        return refuse
