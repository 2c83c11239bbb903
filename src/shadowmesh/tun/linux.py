"""The TUN device of Linux (linux/if_tun.h, Documentation/networking/tuntap.rst).

The device is made for this process: it goes with its file descriptor and takes its addresses and routes
along, even after kill -9. One that an administrator made persistent is used and left in place, down.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from shadowmesh.errors import OffloadError, TunError
from shadowmesh.tun import netlink
from shadowmesh.tun.base import TunDevice
from shadowmesh.tun.netlink import Interface, Network
from shadowmesh.wire.ip import Bytes
from shadowmesh.wire.offload import GSO_UDP_L4, HEADER_SIZE, PLAIN, segment

_PATH = "/dev/net/tun"
_NAME = re.compile(r"(?!\.{1,2}$)[^\s/:%\x00]+")
_NAME_BYTES = 15  # IFNAMSIZ without its zero

# Some architectures number the direction bits of ioctls the other way round (asm/ioctl.h).
_SWAPPED = platform.machine().startswith(("ppc", "mips", "sparc", "alpha", "parisc"))
_WRITE, _READ = (0x80000000, 0x40000000) if _SWAPPED else (0x40000000, 0x80000000)
_TUNSETIFF = _WRITE | 0x454CA
_TUNGETFEATURES = _READ | 0x454CF
_TUNSETOFFLOAD = _WRITE | 0x454D0
_TUNGETIFF = _READ | 0x454D2
_TUNSETVNETHDRSZ = _WRITE | 0x454D8
_TUNSETVNETLE = _WRITE | 0x454DC
_SIOCSIFFLAGS = 0x8914

_IFF_TUN, _IFF_PERSIST, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x0800, 0x1000, 0x4000
# In the order in which kernels learnt them. USO4 and USO6 (Linux 6.2) are taken together only.
_OFFLOADS = {"csum": 0x01, "tso4": 0x02, "tso6": 0x04, "ecn": 0x08, "uso": 0x60}

_int = struct.Struct("i")
_ifreq = struct.Struct("16sH22x")

_PERMISSION = (
    "Permission denied creating TUN device {name}: run the daemon with sudo, or give it the capability "
    "CAP_NET_ADMIN (in a container: --cap-add NET_ADMIN --device /dev/net/tun)"
)


def open_tun(
    name: str,
    addresses: Sequence[Interface],
    mtu: int,
    routes: Sequence[Network] = (),
    *,
    offload: bool = True,
) -> LinuxTun:
    """Make the TUN device `name` with its addresses, MTU (bytes) and routes to other networks, and bring it
    up.

    With offload as far as the kernel has it, or none on request. Raises TunError, in words what to do. Blocks
    for some milliseconds, and is not for inside a running event loop: call it before, or in a thread.
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > _NAME_BYTES:
        raise TunError(f"{name!r} cannot name a network interface: 1 to 15 bytes without space, / : %")
    fd = _open(name)
    try:
        vnet_header = offload and bool(_get_int(fd, _TUNGETFEATURES) & _IFF_VNET_HDR)
        _attach(fd, name, vnet_header)
        offloads = _set_offload(fd) if vnet_header else ()
        warnings = netlink.configure(name, addresses, mtu, routes)
        tun = LinuxTun(fd, name, mtu, offloads, warnings, vnet_header=vnet_header)
        tun.addresses, tun.routes = tuple(addresses), tuple(routes)
        return tun
    except OSError as error:
        os.close(fd)
        raise TunError(f"cannot make TUN device {name}: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise


class LinuxTun(TunDevice):
    """An open device; made by `open_tun`. addresses, routes: what `repair` gives it back."""

    addresses: tuple[Interface, ...] = ()
    routes: tuple[Network, ...] = ()

    def __init__(
        self,
        fd: int,
        name: str,
        mtu: int,
        offload: tuple[str, ...],
        warnings: tuple[str, ...],
        *,
        vnet_header: bool,
    ) -> None:
        self.name = name
        self.mtu = mtu
        self.offload = offload
        self.warnings = warnings
        self._fd = fd
        self._vnet_header = vnet_header
        self._uso = "uso" in offload
        self._repairing = Lock()

    def fileno(self) -> int:
        return self._fd

    def read_into(self, buffer: memoryview) -> int:
        try:
            if self._vnet_header:
                return os.readv(self._fd, (buffer,))
            size = os.readv(self._fd, (buffer[HEADER_SIZE:],))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise TunError(
                f"TUN device {self.name} is gone: {error.strerror}; was it deleted by another program?"
            ) from error
        buffer[:HEADER_SIZE] = PLAIN
        return HEADER_SIZE + size

    def write(self, record: memoryview) -> bool:
        # A kernel that gives no UDP segments takes none either (both came with Linux 6.2).
        if not self._vnet_header or (record[1] == GSO_UDP_L4 and not self._uso):
            try:
                written = [self.write_packet(packet) for packet in segment(record)]
            except OffloadError:
                return False
            return all(written)
        try:
            os.write(self._fd, record)
        except OSError:
            return False
        return True

    def write_packet(self, packet: Bytes) -> bool:
        try:
            if self._vnet_header:
                os.writev(self._fd, (PLAIN, packet))
            else:
                os.write(self._fd, packet)
        except OSError:
            return False
        return True

    def repair(self) -> tuple[str, ...]:
        with self._repairing:
            added: list[Interface | Network] = []
            netlink.restore(self.name, self.addresses, self.routes, added)
            return tuple(map(str, added))

    def set_routes(self, routes: Sequence[Network]) -> None:
        with self._repairing:
            added: list[Interface | Network] = []
            try:
                netlink.restore(self.name, self.addresses, routes, added)
                netlink.remove_routes(self.name, [route for route in self.routes if route not in routes])
            except TunError:
                with suppress(TunError):
                    netlink.remove_routes(self.name, [each for each in added if isinstance(each, Network)])
                with suppress(TunError):
                    netlink.restore(self.name, self.addresses, self.routes, [])
                raise
            self.routes = tuple(routes)

    def close(self) -> None:
        if self._fd < 0:
            return
        try:
            if _get_flags(self._fd) & _IFF_PERSIST:
                _set_down(self.name)
        except OSError:
            pass  # deleted by another program already
        finally:
            os.close(self._fd)
            self._fd = -1


def _open(name: str) -> int:
    try:
        return os.open(_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise TunError(_PERMISSION.format(name=name)) from error
    except OSError as error:
        raise TunError(
            f"cannot create TUN device {name}: {_PATH}: {error.strerror}; load the kernel module with "
            "`modprobe tun` (in a container: start it with --device /dev/net/tun)"
        ) from error


def _attach(fd: int, name: str, vnet_header: bool) -> None:
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_header else 0)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _ifreq.pack(name.encode(), flags))
    except PermissionError as error:
        raise TunError(_PERMISSION.format(name=name)) from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise TunError(
                f"TUN device {name} is in use by {_holder(name)}: stop it, "
                "or choose another network.device_name"
            ) from error
        if error.errno == errno.EINVAL and name in {interface for _, interface in socket.if_nameindex()}:
            raise TunError(
                f"interface {name} exists and is no TUN device that we could use: "
                "choose another network.device_name, or remove that interface"
            ) from error
        raise
    if vnet_header:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _int.pack(HEADER_SIZE))
        if sys.byteorder == "big":
            fcntl.ioctl(fd, _TUNSETVNETLE, _int.pack(1))
    else:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)  # a persistent device may still have them from its last user


def _set_offload(fd: int) -> tuple[str, ...]:
    names = tuple(_OFFLOADS)
    for count in range(len(names), 0, -1):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, sum(_OFFLOADS[name] for name in names[:count]))
        except OSError:
            continue
        return names[:count]
    return ()


def _get_int(fd: int, request: int) -> int:
    value: int = _int.unpack(fcntl.ioctl(fd, request, bytes(_int.size)))[0]
    return value


def _get_flags(fd: int) -> int:
    flags: int = _ifreq.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_ifreq.size)))[1]
    return flags


def _set_down(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _ifreq.pack(name.encode(), 0))


def _holder(name: str) -> str:
    """Which process has the device, as far as we may see: its number and name."""
    here = os.readlink("/proc/thread-self/ns/net")
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        process = fd.parent.parent
        try:
            if (
                os.readlink(fd) == _PATH
                and os.readlink(process / "ns/net") == here
                and f"\niff:\t{name}\n" in (process / "fdinfo" / fd.name).read_text()
            ):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue  # ended meanwhile, or not ours to look at
    return "another process"
