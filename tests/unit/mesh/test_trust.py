"""Trust on first use, and pins (docs/protocol.md, 4, "Identity")."""

from __future__ import annotations

import pytest

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.mesh.trust import MAX_KNOWN, Trust, Verdict
from shadowmesh.testing.memory import MemoryMesh

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


def test_the_operator_accepts_the_key_that_was_refused() -> None:
    trust = Trust({IP: ONE}, strict=True)
    assert trust.check(IP, OTHER) is Verdict.REFUSED
    trust.refused[IP] = OTHER
    with pytest.raises(ValueError, match="not that one"):
        trust.accept(IP, fingerprint(ONE))
    assert trust.accept(IP, fingerprint(OTHER)) == OTHER
    assert (trust.check(IP, OTHER), trust.check(IP, ONE)) == (Verdict.KNOWN, Verdict.REFUSED)
    assert trust.refused == {}


def test_the_operator_forgets_a_key() -> None:
    trust = Trust({IP: ONE}, strict=True)
    assert trust.accept(IP, fingerprint(ONE)) == ONE
    assert trust.accept(IP, forget=False) == ONE
    assert trust.accept(IP) is None
    assert trust.check(IP, OTHER) is Verdict.NEW
    with pytest.raises(ValueError, match="no key is known for it"):
        trust.accept(IP)


def test_a_pin_is_not_for_the_operator_to_pass_by() -> None:
    trust = Trust({IP: ONE}, {IP: fingerprint(ONE)})
    trust.refused[IP] = OTHER
    with pytest.raises(ValueError, match=r"pinned in peers\.trusted"):
        trust.accept(IP, fingerprint(OTHER))


def test_other_rules_hold_at_once() -> None:
    trust = Trust({IP: ONE})
    assert trust.check(IP, OTHER) is Verdict.CHANGED
    trust.configure({}, strict=True)
    assert trust.check(IP, OTHER) is Verdict.REFUSED
    trust.configure({IP: fingerprint(OTHER)}, strict=False)
    assert (trust.check(IP, OTHER), trust.check(IP, ONE)) == (Verdict.CHANGED, Verdict.REFUSED)


def test_a_pin_of_two_networks() -> None:
    trust = Trust({}, {IP: f"{fingerprint(ONE)} {fingerprint(OTHER)}"})
    assert [trust.check(IP, key) for key in (ONE, OTHER, b"3" * 32)] == [
        Verdict.NEW,
        Verdict.NEW,
        Verdict.REFUSED,
    ]


def test_who_is_refused_by_new_rules_is_parted_with_and_comes_back_when_trusted() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    mesh.meet(a, b)
    a.trust.configure({b.ip(): fingerprint(b.device.static_public)}, strict=True)
    a.mesh.recheck()
    assert a.peer(b).sessions
    a.trust.configure({b.ip(): fingerprint(OTHER)}, strict=True)
    a.mesh.recheck()
    assert not a.mesh.peers
    a.ping(b, b"refused")
    mesh.run(1.0)
    assert not a.mesh.peers
    a.trust.configure({}, strict=True)
    mesh.run(3.0)
    a.ping(b, b"trusted")
    mesh.run(1.0)
    assert b.payloads[-1] == b"trusted"
