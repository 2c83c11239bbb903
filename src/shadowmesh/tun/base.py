"""What the daemon needs of a TUN device.

Every device reads and writes *records*, `virtio_net_hdr (10 bytes) ‖ IP packet` (`wire.offload`): one without
offload gives zeros as the header and cuts in software what it is given, so the engine knows one form only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from shadowmesh.wire.ip import Bytes
from shadowmesh.wire.offload import MAX_RECORD

__all__ = ["MAX_RECORD", "Network", "TunDevice"]

Network = IPv4Network | IPv6Network


class TunDevice(ABC):
    """A non-blocking device, one record at a time; an event loop watches `fileno()` for reading.

    name: of the interface. mtu: in bytes. offload: what the kernel leaves unfinished for us, of `csum`,
    `tso4`, `tso6`, `ecn`, `uso`; empty if every packet comes finished. warnings: lines for the log about the
    set-up.
    """

    name: str
    mtu: int
    offload: tuple[str, ...]
    warnings: tuple[str, ...]

    @abstractmethod
    def fileno(self) -> int:
        """The file descriptor, -1 after `close`."""

    @abstractmethod
    def read_into(self, buffer: memoryview) -> int:
        """Read one record into `buffer` (at least MAX_RECORD bytes): its length, 0 if none waits.

        Raises TunError if the device is gone.
        """

    @abstractmethod
    def write(self, record: memoryview) -> bool:
        """Give the kernel one record, its header made by `wire.offload.sanitize` or by our own kernel.

        False if it was refused: that record is lost, nothing else.
        """

    @abstractmethod
    def write_packet(self, packet: Bytes) -> bool:
        """Give the kernel one finished IP packet, without header; False as for `write`."""

    def repair(self) -> tuple[str, ...]:
        """Give the device back the addresses and routes that somebody took from it: those that were missing.

        Raises TunError. May block for some milliseconds; not inside a running event loop, but in a thread.
        """
        return ()

    @abstractmethod
    def set_routes(self, routes: Sequence[Network]) -> None:
        """Lead these networks to the device, and no others but those of its addresses.

        Raises TunError, and has changed nothing then. Blocks like `repair`.
        """

    @abstractmethod
    def close(self) -> None:
        """Take the device away with its addresses and routes. A second call does nothing."""
