"""Which static key belongs to which overlay IP: trust on first use, with pins (docs/protocol.md, 4)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from shadowmesh.crypto.keys import fingerprint

MAX_KNOWN = 4096  # whoever holds the network key can make up any number of devices


class Verdict(Enum):
    """What is known of an IP and the key that now answers for it."""

    KNOWN = "known"
    NEW = "new"
    CHANGED = "changed"  # accepted, with a warning
    REFUSED = "refused"


class Trust:
    """known: overlay IP (4 or 16 bytes) → X25519 public key. pins: overlay IP → fingerprint, always strict.

    strict: a changed key is refused; otherwise it is accepted, remembered and reported.
    """

    def __init__(
        self,
        known: Mapping[bytes, bytes] | None = None,
        pins: Mapping[bytes, str] | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.known = dict(known or {})
        self._pins = dict(pins or {})
        self._strict = strict

    def check(self, ip: bytes, static: bytes) -> Verdict:
        """Judge a key, changing nothing."""
        pin = self._pins.get(ip)
        if pin is not None and pin != fingerprint(static):
            return Verdict.REFUSED
        known = self.known.get(ip)
        if known == static:
            return Verdict.KNOWN
        if known is None:
            return Verdict.NEW
        return Verdict.REFUSED if self._strict and pin is None else Verdict.CHANGED

    def remember(self, ip: bytes, static: bytes) -> None:
        """This key answers for this IP from now on.

        With MAX_KNOWN others nothing is kept of a new IP: what is known must not be driven out by strangers.
        """
        if ip in self.known or len(self.known) < MAX_KNOWN:
            self.known[ip] = static
