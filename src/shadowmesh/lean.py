"""A short start: libraries without the parts that our programs do not use, and no search for garbage in it.

    with lean.bare("uvicorn"):
        from uvicorn.server import Server

Whoever asks for the rest of such a library later, in the same process, gets it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, cast


class _Bare(ModuleType):
    """A package whose `__init__` runs when somebody asks for a name that only it could make."""

    _passed_on: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name in self._passed_on:
            return getattr(import_module(self._passed_on[name]), name)
        if spec is None or spec.loader is None or find_spec(f"{spec.name}.{name}") is not None:
            raise AttributeError(name)  # of a module: whoever imports it finds it
        ModuleType.__setattr__(self, "__class__", ModuleType)
        spec.loader.exec_module(self)
        return getattr(self, name)


@contextmanager
def bare(package: str, **passed_on: str) -> Iterator[None]:
    """Imports in the block take modules of a package without its `__init__`, which would import them all.

    passed_on: names that modules which we use take from the package, and the module that has each.
    """
    if package not in sys.modules and (spec := find_spec(package)) is not None:
        module = sys.modules[package] = module_from_spec(spec)
        module.__dict__["_passed_on"] = passed_on
        module.__class__ = _Bare
    yield


@contextmanager
def without(package: str) -> Iterator[None]:
    """What is imported in the block does without a package that it would use if it were installed."""
    modules = cast(dict[str, ModuleType | None], sys.modules)
    hidden = modules.setdefault(package, None) is None  # one that is loaded already would save nothing
    try:
        yield
    finally:
        if hidden:
            del modules[package]


def started() -> None:
    """Collect garbage from here on, which `main` of a program has put off. What is there by now stays.

    That is 100,000 objects, and to look for the 1000 of them that nobody uses would take 40 ms.
    """
    gc.freeze()
    gc.enable()
