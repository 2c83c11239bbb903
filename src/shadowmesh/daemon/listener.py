"""Who uses the connection to a relay, or to several of them."""

from __future__ import annotations

from typing import Protocol


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
