"""Changes around the daemon, noticed at once on Linux: of the host's links, addresses and routes (rtnetlink,
RFC 3549), of its own TUN device, and that the host slept. Elsewhere nothing is noticed.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

GATHER_SECONDS = 0.2
"""What changes within so much time is one change."""
TICK_SECONDS = 1.0
SLEPT_SECONDS = 1.0
STOPPED_SECONDS = 5.0

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # link, IPv4 address, IPv4 route, IPv6 address, IPv6 route
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE = 24, 25
_REQUEST_DUMP = 0x001 | 0x300
_UP_RUNNING_CARRIER = 0x1 | 0x40 | 0x10000
_USABLE = 0x40 | 0x08 | 0x20  # tentative, failed as a duplicate, deprecated
_TABLE_LOCAL = 255  # of each own address, which has a message of its own
_CLONED = 0x200
_ADDRESS, _LOCAL, _OUTPUT = 1, 2, 4
_LATEST_READS = 64  # datagrams of one turn of the loop

_header = struct.Struct("=IHHII")
_link = struct.Struct("=BxHiII")
_address = struct.Struct("=BBBBI")
_route = struct.Struct("=BBBBBBBBI")
_attribute = struct.Struct("=HH")


class NetworkWatch:
    """Watches from inside the running event loop until `close`.

    callback: called with what changed, in words, at most every 0.2 s. ignore: the name of our own TUN device;
    when somebody else sets it down or up, or takes addresses or routes from it, `on_tun` is called instead.
    """

    def __init__(
        self, callback: Callable[[str], None], ignore: str, on_tun: Callable[[], None] | None = None
    ) -> None:
        self._callback = callback
        self._on_tun = on_tun
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._own = 0  # index of our device
        self._links: dict[int, int] = {}  # by index: whether they can be used
        self._addresses: dict[tuple[int, int, bytes], int] = {}
        self._reasons: dict[str, None] = {}
        self._tun_changed = False
        self._lost = False  # messages, so that our account is wrong
        self._gathering: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        if sys.platform == "linux":
            with suppress(OSError):
                self._own = socket.if_nametoindex(ignore)
            with suppress(OSError):  # no AF_NETLINK for us: a sandbox
                self._open()
            self._awake = _sleep(), time.monotonic()
            self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)

    def close(self) -> None:
        """Stop; nothing is called any more."""
        for timer in (self._ticking, self._gathering):
            if timer is not None:
                timer.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            netlink.bind((0, _GROUPS))
            self._learn(netlink)
        except BaseException:
            netlink.close()
            raise
        self._socket = netlink
        self._loop.add_reader(netlink, self._on_readable)

    def _learn(self, netlink: socket.socket) -> None:
        """What there is. The kernel answers a dump while it is read, so this does not wait."""
        self._links.clear()
        self._addresses.clear()
        for request in (_GETLINK, _GETADDR):
            netlink.send(_header.pack(_header.size + 4, request, _REQUEST_DUMP, 0, 0) + bytes(4))
            ended = False
            with suppress(BlockingIOError):
                while not ended:
                    for kind, body in _messages(netlink.recv(1 << 17)):
                        ended = ended or kind in (_DONE, _ERROR)
                        self._see(kind, body)

    def _on_readable(self) -> None:
        netlink = self._socket
        assert netlink is not None
        try:
            for _ in range(_LATEST_READS):
                for kind, body in _messages(netlink.recv(1 << 17)):
                    if kind in (_NEWROUTE, _DELROUTE):
                        self._on_route(kind, body)
                    elif changed := self._see(kind, body):
                        index, what = changed
                        self._note(index, what, gone=kind == _DELADDR or what == "a link changed")
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # More than the socket holds: whatever it was, it is over.
            self._lost = True
            self._note(0, "the network changed")
            self._note(self._own, "", gone=True)
            # libuv does not go on listening to a socket that had an error.
            self._loop.remove_reader(netlink)
            self._loop.add_reader(netlink, self._on_readable)

    def _see(self, kind: int, body: bytes) -> tuple[int, str] | None:
        """Keep account of links and addresses: (index of the link, what changed), if something did.

        The kernel also reports what stays as it was, at each router advertisement or scan for Wi-Fi.
        """
        if kind in (_NEWLINK, _DELLINK):
            family, _, index, flags, _ = _link.unpack_from(body)
            if family:
                return None  # its place in a bridge
            flags &= _UP_RUNNING_CARRIER
            before = self._links.pop(index, 0)
            if kind == _NEWLINK:
                self._links[index] = flags
            return (index, "a link changed") if before != (flags if kind == _NEWLINK else 0) else None
        if kind in (_NEWADDR, _DELADDR):
            _, prefix, flags, _, index = _address.unpack_from(body)
            attributes = dict(_attributes(body, _address.size))
            key = index, prefix, attributes.get(_LOCAL) or attributes.get(_ADDRESS, b"")
            if kind == _DELADDR:
                return (index, "an address changed") if self._addresses.pop(key, None) is not None else None
            flags &= _USABLE
            if self._addresses.get(key) != flags:
                self._addresses[key] = flags
                return index, "an address changed"
        return None

    def _on_route(self, kind: int, body: bytes) -> None:
        table, flags = body[4], _route.unpack_from(body)[8]
        if table == _TABLE_LOCAL or flags & _CLONED:
            return
        output = dict(_attributes(body, _route.size)).get(_OUTPUT, b"")
        self._note(int.from_bytes(output, sys.byteorder), "a route changed", gone=kind == _DELROUTE)

    def _note(self, index: int, reason: str, *, gone: bool = False) -> None:
        if index and index == self._own:
            if not gone:
                return  # addresses and routes that come may be our own doing
            self._tun_changed = True
        else:
            self._reasons[reason] = None
        if self._gathering is None:
            self._gathering = self._loop.call_later(GATHER_SECONDS, self._tell)

    def _tell(self) -> None:
        self._gathering = None
        reasons, tun_changed = self._reasons, self._tun_changed
        self._reasons, self._tun_changed = {}, False
        if self._lost and self._socket is not None:
            self._lost = False
            with suppress(OSError):
                self._learn(self._socket)
        if tun_changed and self._on_tun is not None:
            self._on_tun()
        if reasons:
            self._callback(" and ".join(reasons))

    def _tick(self) -> None:
        slept, now = self._awake
        self._awake = _sleep(), time.monotonic()
        if self._awake[0] - slept > SLEPT_SECONDS:
            self._note(0, "the device slept")
        elif self._awake[1] - now > STOPPED_SECONDS:
            self._note(0, "the daemon was stopped")  # SIGSTOP, or a virtual machine that was paused
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)


def _sleep() -> float:
    """Seconds that this host has slept since it was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The netlink messages of one datagram: (type, body)."""
    at = 0
    while at + _header.size <= len(data):
        size, kind, *_ = _header.unpack_from(data, at)
        if size < _header.size:
            return
        yield kind, data[at + _header.size : at + size]
        at += (size + 3) & ~3


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _attribute.size <= len(body):
        size, kind = _attribute.unpack_from(body, at)
        if size < _attribute.size:
            return
        yield kind & 0x3FFF, body[at + _attribute.size : at + size]
        at += (size + 3) & ~3
