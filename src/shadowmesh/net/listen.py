"""Listening sockets, with what stops them in words."""

from __future__ import annotations

import errno
import socket

from shadowmesh.errors import StartError


def listen(host: str | None, port: int, what: str) -> socket.socket:
    """A listening TCP socket; with `host` None one for IPv6 and IPv4 together (IPv4 only where IPv6 is
    missing).

    Raises StartError in words, with `what` as the name of the setting.
    """
    try:
        if host is None and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        family = socket.AF_INET6 if host is not None and ":" in host else socket.AF_INET
        return socket.create_server((host or "", port), family=family, backlog=1024)
    except OSError as exc:
        where = f"{what} {port}" + (f" on {host}" if host else "")
        raise StartError(f"{where}: {_reason(exc)}") from None


def _reason(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "another program has this port; stop it or choose another port in the configuration"
    if exc.errno == errno.EACCES:
        return "no permission for this port; choose one above 1023 or give the program CAP_NET_BIND_SERVICE"
    if exc.errno == errno.EADDRNOTAVAIL or isinstance(exc, socket.gaierror):
        return "this host has no such address; write one of its own, or remove the line to listen on all"
    return exc.strerror or str(exc)
