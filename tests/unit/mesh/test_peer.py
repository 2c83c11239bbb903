"""Session, peer and flow: what a fresh one of each is."""

from __future__ import annotations

import pytest

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.errors import SealedError
from shadowmesh.mesh.peer import SESSION_LIFETIME, Flow, Peer, Session
from shadowmesh.testing.memory import local_settings
from shadowmesh.wire import frame

LOCAL, REMOTE = b"L" * 16, b"R" * 16
INFO = local_settings("a", "10.10.10.1/24").info()


def session(peer: Peer, *, initiator: bool) -> Session:
    local, remote = (b"ours", b"them") if initiator else (b"them", b"ours")
    return Session(
        peer,
        initiator=initiator,
        local=LOCAL,
        remote=REMOTE,
        local_index=local,
        remote_index=remote,
        keys=(b"1" * 32, b"2" * 32),
        info=INFO,
        now=100.0,
    )


def test_the_initiator_sends_with_the_first_key() -> None:
    one, other = session(Peer(b"s" * 32), initiator=True), session(Peer(b"t" * 32), initiator=False)
    out = memoryview(bytearray(100))
    for sender, receiver in ((one, other), (other, one)):
        sealed = memoryview(sender.sealer.seal(b"sixteen bytes ok"))
        assert sealed[4:8] == receiver.local_index
        assert bytes(out[: receiver.opener.open_into(sealed, out)]) == b"sixteen bytes ok"
        with pytest.raises(SealedError):
            sender.opener.open_into(sealed, out)


def test_a_new_session() -> None:
    peer = Peer(b"s" * 32)
    for initiator in (True, False):
        new = session(peer, initiator=initiator)
        assert (
            new.confirmed is not initiator
        )  # the finish shows the responder that the other side has the keys
        assert new.expires == 100.0 + SESSION_LIFETIME
        assert new.verified == new.sources == new.contested == new.accepted == set()


def test_nothing_secret_in_the_words() -> None:
    peer = Peer(b"s" * 32)
    assert repr(peer) == f"<Peer {fingerprint(b's' * 32)[:8]}>"
    assert repr(session(peer, initiator=True)) == "<Session 6f757273 initiator>"


def test_a_peer_speaks_for_its_newest_session_and_all_its_ips() -> None:
    peer = Peer(b"s" * 32)
    assert peer.info is None
    assert peer.verified == set()
    peer.sessions = [session(peer, initiator=True), session(peer, initiator=False)]
    peer.sessions[0].verified.add(b"old!")
    peer.sessions[1].verified.add(b"new!")
    assert peer.info is INFO
    assert peer.verified == {b"old!", b"new!"}


def test_the_header_of_a_flow_is_the_front_of_its_frames() -> None:
    flow = Flow(b"\x0a\x0a\x0a\x02", LOCAL, REMOTE, None)
    assert flow.header + b"message" == frame.pack(REMOTE, LOCAL, b"message")
