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

    A pin of several fingerprints, with spaces between, takes any: a device has another one in each network.
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
        self.refused: dict[bytes, bytes] = {}
        """Overlay IP → the key that was refused last; whoever hears of a refusal notes it here."""
        self.configure(pins or {}, strict=strict)

    def configure(self, pins: Mapping[bytes, str], *, strict: bool) -> None:
        """Judge by other pins and strictness from now on; what is known stays."""
        self._pins = dict(pins)
        self._strict = strict

    def check(self, ip: bytes, static: bytes) -> Verdict:
        """Judge a key, changing nothing."""
        pin = self._pins.get(ip)
        if pin is not None and fingerprint(static) not in pin.split():
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

    def accept(self, ip: bytes, expected: str = "", *, forget: bool = True) -> bytes | None:
        """Trust the key that was refused last for an IP; its fingerprint must be `expected` if that is given.

        Without a refused one the key that is known is forgotten, unless it is `expected`, or `forget` is
        false. Returns the key that is trusted now, None if
        the next one that comes will be. Raises ValueError in words for what must not or cannot be done.
        """
        static, known = self.refused.get(ip), self.known.get(ip)
        found = static or known
        if ip in self._pins:
            raise ValueError("its key is pinned in peers.trusted: change the fingerprint there, and reload")
        if found is None:
            raise ValueError("no key is known for it, so the first device that answers is trusted anyway")
        if expected and fingerprint(found) != expected:
            raise ValueError(f"the key that answers has the fingerprint {fingerprint(found)}, not that one")
        if static is not None:
            del self.refused[ip]
            self.known[ip] = static
            return static
        if expected or not forget:
            return known
        del self.known[ip]
        return None
