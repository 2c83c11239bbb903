"""Each usual mistake is named with what to do, from the facts of /status; what is no mistake is not."""

from __future__ import annotations

from typing import Any

import pytest

from shadowmesh.daemon.diagnosis import KINDS, diagnose, kind
from shadowmesh.daemon.words import another_version

SERVER = "ws://relay.example:9545/relay"


def relay(**changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "server": SERVER,
        "state": "connected",
        "reason": "",
        "refused": {},
        "history": [],
    }
    return facts | changes


def facts(*relays: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A /status in which all is well, but for the changes."""
    all_relays = list(relays) or [relay()]
    connected = any(each["state"] == "connected" for each in all_relays)
    well: dict[str, Any] = {
        "status": "connected" if connected else "waiting",
        "name": "laptop",
        "relays": all_relays,
        "peers": [],
        "drops": {},
        "events": {},
        "handshakes": 0,
        "contested": {},
        "conflicts": {},
        "identities_refused": {},
    }
    return well | changes


def lost(reason: str) -> dict[str, Any]:
    return facts(relay(state="waiting", reason=reason))


def only(given: dict[str, Any]) -> tuple[str, str]:
    """The code and the words of the one thing that is wrong."""
    (found,) = diagnose(given)
    assert set(found) == {"code", "text"}
    assert "{" not in found["text"]
    return found["code"], found["text"]


def test_all_is_well() -> None:
    assert diagnose(facts()) == []
    assert diagnose(facts(peers=[{"identity": "known"}], drops={"multicast": 9}, events={"session": 1})) == []


@pytest.mark.parametrize(
    ("reason", "code", "todo"),
    [
        (
            "duplicate_device: another process uses this device's key",
            "duplicate_device",
            "remove device.key from its state directory",
        ),
        ("the relay asks for an API key: write it as relay.api_key", "api_key", "ask its operator"),
        ("the relay refuses our API key: is revoked", "api_key", "ask its operator"),
        ("the relay withdrew our access: this API key is revoked", "api_key", "ask its operator"),
        (
            "the relay withdrew our access: this relay serves this network no more",
            "join_refused",
            "allowed_networks",
        ),
        (
            "the TLS certificate of r:443 is not valid: certificate has expired; this device's clock says "
            "2026-01-01 00:00 UTC: if that is wrong, set it",
            "certificate",
            "set it",
        ),
        (
            "the TLS certificate of r:443 is not valid: self-signed certificate; if the relay has a CA of "
            "its own, write its certificate as relay.tls_ca_file; if not, somebody in between reads TLS: a "
            "company's proxy (whose CA would go there), or the login page of this network",
            "certificate",
            "relay.tls_ca_file",
        ),
        (
            "the proxy http://10.0.0.1:3128 refuses (HTTP 407 Proxy Authentication Required): it asks for a "
            "user name and password: write http://USER:PASSWORD@... in relay.proxy",
            "proxy",
            "relay.proxy: none",
        ),
        (
            "a web page answers instead of the relay (HTTP 302 Found): the login page of this network, as "
            "hotels have one? Then open a browser and log in",
            "captive_portal",
            "open a browser",
        ),
        (
            "the server answers, but it is no ShadowMesh relay (HTTP 404); a relay's own port is 9545",
            "not_a_relay",
            "host and port of relay.server",
        ),
        ("TLS with r:443 fails (WRONG_VERSION_NUMBER): does it speak TLS?", "tls", "does it speak TLS"),
        (another_version(2), "version", "upgrade this client"),
        (another_version(0), "version", "upgrade the relay"),
        (
            "the relay refused the join: protocol version 1; this relay speaks 2: upgrade the client",
            "version",
            "upgrade the client",
        ),
        ("the relay refused the join: this network is not allowed here", "join_refused", "allowed_networks"),
        ("the relay has no place for us", "full", "max_connections"),
        ("cannot find the address of r.example: Name or service not known", "name", "spelt right"),
        ("r:9545 refuses connections: is the relay running, and is this its port?", "refused", "is this its"),
        ("r:9545 cannot be reached: no route to it", "unreachable", "online"),
        ("the relay does not answer any more", "silent", "no connection to ws://relay.example"),
        ("the relay does not answer any more: large packets seem to get lost on the way", "hang", "large"),
        ("the relay does not answer any more, though it gets what is sent", "hang", "gets what is sent"),
        ("the connection was lost", "lost", "no connection to ws://relay.example"),
        ("the device slept and an address changed", "network", "no connection to ws://relay.example"),
        ("the relay stops or restarts", "restart", "no connection to ws://relay.example"),
        ("the relay closed the connection (4000): remove the API key", "lost", "(4000)"),
        ("something new", "other", "something new"),
    ],
)
def test_why_there_is_no_relay(reason: str, code: str, todo: str) -> None:
    assert kind(reason) == code
    assert code in KINDS
    found, text = only(lost(reason))
    assert found == code
    assert todo in text


def test_the_clock_is_named_for_certificates_only() -> None:
    """Nothing else here depends on it."""
    for name in KINDS:
        if name != "certificate":
            assert "clock" not in " ".join(each["text"] for each in diagnose(lost(f"{name} xyz")))


def test_each_of_several_relays_is_named() -> None:
    second = relay(server="ws://other.example/relay", state="waiting", reason="the connection was lost")
    code, text = only(facts(relay(), second))
    assert (code, "ws://other.example/relay" in text) == ("lost", True)


@pytest.mark.parametrize(
    ("name", "code", "key"),
    [
        ("10.10.10.1", "duplicate_local_ip", "network.local_ip"),
        ("laptop", "duplicate_id", "peer.id"),
    ],
)
def test_two_devices_with_one_address_are_both_told(name: str, code: str, key: str) -> None:
    late = facts(relay(refused={name: "address_in_use"}))
    found, text = only(late)
    assert (found, key in text, name in text) == (code, True, True)
    first = facts(contested={name: 3.0})
    found, text = only(first)
    assert (found, key in text, name in text) == (code, True, True)
    assert diagnose(facts(contested={name: 61.0})) == []


def test_two_peers_with_one_address() -> None:
    code, text = only(facts(conflicts={"10.10.10.9": 1.0}))
    assert (code, "10.10.10.9" in text) == ("peer_conflict", True)


def test_what_may_be_over_is_told_with_its_time() -> None:
    for key, name in (("contested", "laptop"), ("contested", "10.10.10.1"), ("conflicts", "10.10.10.9")):
        assert ", 29 s ago" in only(facts(**{key: {name: 29.1}}))[1]


def test_the_same_trouble_in_two_networks_is_told_once() -> None:
    away = relay(state="waiting", reason="the connection was lost")
    assert only(facts(away, away))[0] == "lost"


def test_a_route_that_is_not_offered() -> None:
    code, text = only(facts(not_offered=[{"route": "192.0.2.0/24", "peer": "desktop"}]))
    assert code == "route_not_offered"
    assert "packets to 192.0.2.0/24 go to desktop, which does not offer it" in text


def test_a_wrong_key() -> None:
    code, text = only(facts(drops={"not_here": 4}))
    assert (code, "encryption.key must be the same" in text) == ("wrong_key", True)
    assert only(facts(drops={"no_answer": 1}))[0] == "wrong_key"
    # A peer that was there and left has the right key; and before anything was sent nothing is known.
    assert diagnose(facts(drops={"not_here": 4}, handshakes=1)) == []
    assert diagnose(facts(drops={"no_route": 4})) == []
    assert "wrong_key" not in str(diagnose(lost("the connection was lost") | {"drops": {"not_here": 4}}))


def test_large_packets_that_get_lost() -> None:
    hang = {"seconds_ago": 100.0, "event": "lost", "kind": "hang"}
    code, text = only(facts(relay(history=[hang, hang])))
    assert (code, "ip link set dev" in text, "2 connections" in text) == ("mtu", True, True)
    assert diagnose(facts(relay(history=[hang]))) == []
    assert diagnose(facts(relay(history=[hang, hang | {"seconds_ago": 700.0}]))) == []
    # A handshake is large, so no peer answers.
    assert only(facts(relay(history=[hang, hang]), drops={"no_answer": 1}))[0] == "mtu"
    silent = hang | {"kind": "silent"}
    assert diagnose(facts(relay(history=[silent, silent]))) == []


def test_identities() -> None:
    refused = {"10.10.10.2": {"fingerprint": "abc", "seconds_ago": 5.0}}
    code, text = only(facts(identities_refused=refused))
    assert (code, "shadowmesh trust 10.10.10.2" in text) == ("identity_refused", True)
    changed = {"name": "b", "ips": ["10.10.10.2"], "identity": "changed", "fingerprint": "abc"}
    code, text = only(facts(peers=[changed]))
    assert (code, "b 10.10.10.2 has another key" in text) == ("identity_changed", True)


def test_down_is_all_there_is_to_say() -> None:
    code, text = only(lost("the connection was lost") | {"status": "down"})
    assert (code, "shadowmesh up" in text) == ("down", True)
