"""A short start: libraries without the parts that our programs do not use, and no search for garbage in it.

    with lean.bare("uvicorn"):
        from uvicorn.server import Server

Whoever asks for the rest of such a library later, in the same process, gets it.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, cast

KEPT_HEAP = 4 << 20
"""Bytes at the end of the heap that stay when they are free: less would not do under eight streams."""
LARGEST_IN_HEAP = 1 << 20
"""Bytes from which on an allocation has pages of its own: by default 128 KiB, the size of a frame."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


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


def keep_heap() -> None:
    """Have glibc keep some of what is freed at the end of its heap (mallopt(3)).

    By default it gives back what is more than 256 KiB. Frames that wait for a moment then come and go as new
    pages, each of which the kernel has to clear: a tenth of a relay's processor time under bulk. In a daemon,
    which is seldom busy, the memory is worth more.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_TRIM_THRESHOLD, KEPT_HEAP)
            mallopt(_M_MMAP_THRESHOLD, LARGEST_IN_HEAP)
