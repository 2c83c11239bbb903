"""Trust on first use, and pins (docs/protocol.md, 4, "Identity")."""

from __future__ import annotations

import pytest

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.mesh.trust import MAX_KNOWN, Trust, Verdict

IP = b"\x0a\x0a\x0a\x07"
ONE, OTHER = b"1" * 32, b"2" * 32


def test_first_use() -> None:
    trust = Trust()
    assert trust.check(IP, ONE) is Verdict.NEW
    assert trust.known == {}
    trust.remember(IP, ONE)
    assert trust.check(IP, ONE) is Verdict.KNOWN
    assert trust.check(b"\x0a\x0a\x0a\x08", OTHER) is Verdict.NEW


@pytest.mark.parametrize(("strict", "verdict"), [(False, Verdict.CHANGED), (True, Verdict.REFUSED)])
def test_a_changed_key(strict: bool, verdict: Verdict) -> None:
    trust = Trust({IP: ONE}, strict=strict)
    assert trust.check(IP, OTHER) is verdict
    assert trust.check(IP, ONE) is Verdict.KNOWN


@pytest.mark.parametrize("strict", [False, True])
def test_a_pin_decides_alone(strict: bool) -> None:
    trust = Trust({IP: OTHER}, {IP: fingerprint(ONE)}, strict=strict)
    assert trust.check(IP, OTHER) is Verdict.REFUSED
    assert trust.check(IP, ONE) is Verdict.CHANGED
    trust.remember(IP, ONE)
    assert trust.check(IP, ONE) is Verdict.KNOWN
    assert Trust({}, {IP: fingerprint(ONE)}).check(IP, OTHER) is Verdict.REFUSED


def test_strangers_cannot_drive_out_what_is_known() -> None:
    trust = Trust({i.to_bytes(4): ONE for i in range(MAX_KNOWN)})
    trust.remember(b"new!", OTHER)
    assert len(trust.known) == MAX_KNOWN
    assert trust.check(b"new!", ONE) is Verdict.NEW
    trust.remember(bytes(4), OTHER)
    assert trust.check(bytes(4), OTHER) is Verdict.KNOWN


def test_the_callers_tables_are_left_alone() -> None:
    known: dict[bytes, bytes] = {}
    Trust(known).remember(IP, ONE)
    assert known == {}
