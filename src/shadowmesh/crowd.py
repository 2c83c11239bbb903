"""Things by whose they are, and the oldest of whoever has most of them, each in constant time. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Crowd(Generic[K, T]):
    """Owners are kept in classes of those who have equally many; a change moves one to the next class.

    OrderedDict, because to find the first of a dict takes the longer the more has been deleted before it.
    """

    __slots__ = ("_classes", "_of", "most")

    def __init__(self) -> None:
        self._of: dict[K, OrderedDict[T, None]] = {}
        self._classes: dict[int, OrderedDict[K, None]] = {}
        self.most = 0
        """How many the owner has who has most."""

    def count(self, owner: K) -> int:
        """How many this owner has."""
        return len(self._of.get(owner, ()))

    def add(self, owner: K, thing: T) -> None:
        """A thing that is not there yet, as the newest of its owner."""
        things = self._of.setdefault(owner, OrderedDict())
        things[thing] = None
        self._move(owner, len(things) - 1, len(things))

    def remove(self, owner: K, thing: T) -> None:
        """KeyError if it is not there."""
        things = self._of[owner]
        del things[thing]
        if not things:
            del self._of[owner]
        self._move(owner, len(things) + 1, len(things))

    def oldest_of_most(self) -> T:
        """Of several who have most, that of who has had so many for longest. KeyError if there is none."""
        return next(iter(self._of[next(iter(self._classes[self.most]))]))

    def _move(self, owner: K, old: int, new: int) -> None:
        if old:
            same = self._classes[old]
            del same[owner]
            if not same:
                del self._classes[old]
        if new:
            self._classes.setdefault(new, OrderedDict())[owner] = None
        if new > self.most or (old == self.most and old not in self._classes):
            self.most = new
