"""The connection to a relay, or to several of them, and who uses it."""

from __future__ import annotations

from typing import Protocol


class Link(Protocol):
    """What its user needs of it."""

    @property
    def ready(self) -> bool:
        """Joined, so that frames can be sent."""

    @property
    def max_frame(self) -> int:
        """Bytes of the longest data frame that all its relays take."""

    @property
    def since(self) -> float:
        """Since when it has been ready, or not (monotonic seconds)."""

    def send_frame(self, data: memoryview | bytes, via: object = None) -> None:
        """Send one data frame, which is copied before this returns.

        via: where there are several connections, the one to use; None: all of them.
        """


class Listener(Protocol):
    """Who uses the link."""

    def on_frame(self, data: memoryview) -> None:
        """One data frame; the view is valid during the call only."""

    def joined(self) -> None:
        """Frames can be sent from now on."""

    def lost(self) -> None:
        """They cannot any more."""

    def draining(self) -> None:
        """The relay drops what is sent from now on; its close follows."""

    def gone(self, address: bytes) -> None:
        """The relay has nobody at this address."""

    def refused(self, addresses: set[bytes]) -> None:
        """The relay gives us all own addresses but these."""

    def hold(self, address: bytes) -> None:
        """The relay has much waiting for this address."""

    def release(self, address: bytes) -> None:
        """It has little any more."""

    def pause(self) -> None:
        """The socket takes no more for now."""

    def resume(self) -> None:
        """The socket takes more."""


class Engine(Protocol):
    """Who uses several: as `Listener`, and via says which one it is about, None while there is one alone."""

    def on_frame(self, data: memoryview, via: object = None) -> None: ...
    def joined(self, via: object = None) -> None: ...
    def lost(self, via: object = None) -> None: ...
    def draining(self) -> None: ...
    def gone(self, address: bytes, via: object = None) -> None: ...
    def refused(self, addresses: set[bytes], via: object = None) -> None: ...
    def hold(self, address: bytes, via: object = None) -> None: ...
    def release(self, address: bytes, via: object = None) -> None: ...
    def pause(self, via: object = None) -> None: ...
    def resume(self, via: object = None) -> None: ...
