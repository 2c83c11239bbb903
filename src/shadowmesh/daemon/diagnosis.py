"""What is wrong and what to do about it, in one sentence each: the one place that has these words.

Everything here is judged from the facts of GET /status (see `report`), so a test can make them up.
"""

from __future__ import annotations

import re
from typing import Any

HANG_SECONDS = 600.0  # how long ago a connection may have hung to count
HANGS = 2  # of one relay within that time: once can be anything
RECENT = 60.0  # seconds for which a clash of addresses counts as present
UNANSWERED = ("not_here", "held_back", "no_answer")

# What the reason of a relay link is about, by the words of the link and the dialler; the first that fits.
_KINDS: tuple[tuple[str, str], ...] = (
    ("duplicate_device", r"duplicate_device"),
    ("api_key", r"API key|withdrew our access(?!: this relay serves this network no more)"),
    ("certificate", r"\bcertificate\b"),
    ("proxy", r"\bthe proxy \w+://|HTTP 407"),
    ("captive_portal", r"login page"),
    ("version", r"version \d+ of the protocol|refused the join: protocol version \d"),
    ("not_a_relay", r"no ShadowMesh relay|is it a relay|breaks the protocol"),
    ("join_refused", r"refused the join|gave up waiting for the join|withdrew our access"),
    ("full", r"no place for us|HTTP 503|HTTP 429"),
    ("restart", r"stops or restarts"),
    ("tls", r"\bTLS\b"),
    ("name", r"cannot find the address|is not found in time|name server"),
    ("refused", r"refuses connections"),
    ("unreachable", r"cannot be reached|no route"),
    ("hang", r"takes no data|gets what is sent|large packets"),
    ("silent", r"does not answer|closed the connection without an answer"),
    ("network", r"address|route|network|link changed|slept|was stopped"),
    ("lost", r"connection was lost|closed the connection"),
)
DEDUCED = {"mtu", "wrong_key"}
"""What no single event shows, so that the log has it from here only."""
KINDS = (*(kind for kind, _ in _KINDS), "other")
"""Coarse reasons, for metrics."""

_REMEDIES = {
    "duplicate_device": (
        "another process uses this device's key: stop that one; if it is another machine that was copied "
        "from this one, remove device.key from its state directory and restart its daemon"
    ),
    "api_key": (
        "the relay does not let us in ({reason}): ask its operator for an API key, write it as "
        "relay.api_key, and `shadowmesh reload`"
    ),
    "proxy": "{reason} (where none is needed: relay.proxy: none)",
    "not_a_relay": (
        "{server} answers, but it is no relay ({reason}): look at host and port of relay.server; "
        "a relay's own port is 9545"
    ),
    "join_refused": (
        "{reason}: ask its operator whether allowed_networks and public_names have this network and "
        "the name in relay.server"
    ),
    "full": "{reason}: its operator can raise max_connections or limits; we try again by ourselves",
    "name": "{reason}: is relay.server spelt right, and does this host resolve other names?",
    "unreachable": "{reason}: is this host online, and is relay.server right?",
}
_MTU = (
    "{server} is reached, but {times} connections to it have hung within the last ten minutes: large packets "
    "seem to get lost on the way; try a smaller MTU on the interface that leads there, such as "
    "`ip link set dev eth0 mtu 1280`"
)
DOWN = "switched off by `shadowmesh down`; `shadowmesh up` connects again"
_OFFER = (
    "packets to {route} go to {peer}, which does not offer it, and drops them: add it to network.advertise "
    "there"
)
_WRONG_KEY = (
    "the relay answers, but no peer answers to this key: encryption.key must be the same on all devices "
    "(`network` in `shadowmesh status` is then equal), they must use the same relay, and be switched on"
)


def kind(reason: str) -> str:
    """The coarse reason of a link's words: one of KINDS."""
    if reason.startswith("the relay closed the connection ("):
        return "lost"  # a code that we do not know, and then the relay's own words
    for name, pattern in _KINDS:
        if re.search(pattern, reason):
            return name
    return "other"


def diagnose(facts: dict[str, Any]) -> list[dict[str, str]]:
    """What is wrong by the facts of /status: {"code", "text"} each, the most important first."""
    if facts["status"] == "down":
        return [_found("down", DOWN)]
    found: list[dict[str, str]] = []
    for relay in facts["relays"]:
        found += _relay(relay)
    found += _clashes(facts)
    found += [_found("route_not_offered", _OFFER.format(**each)) for each in facts.get("not_offered", ())]
    if facts["status"] == "connected" and not any(each["code"] == "mtu" for each in found):
        found += _nobody(facts)
    found += _identities(facts)
    # Several connections to one relay, as while the network key is replaced, have the same trouble.
    return list({(each["code"], each["text"]): each for each in found}.values())


def _found(code: str, text: str) -> dict[str, str]:
    return {"code": code, "text": text}


def _relay(relay: dict[str, Any]) -> list[dict[str, str]]:
    reason, server = relay["reason"], relay["server"]
    recent = [each for each in relay["history"] if each["seconds_ago"] < HANG_SECONDS]
    hangs = sum(each["event"] == "lost" and each["kind"] in ("hang", "silent") for each in recent)
    if hangs >= HANGS and any(each["kind"] == "hang" for each in recent):
        return [_found("mtu", _MTU.format(server=server, times=hangs))]
    if relay["state"] in ("connected", "standby") or not reason:
        return []
    what = kind(reason)
    if what in _REMEDIES:
        return [_found(what, _REMEDIES[what].format(reason=reason, server=server))]
    return [_found(what, f"no connection to {server}: {reason}")]  # the dialler's words say what to do


def _clashes(facts: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    refused = {name: code for relay in facts["relays"] for name, code in relay["refused"].items()}
    for name in refused:
        key = _key(name, facts)
        found.append(
            _found(
                f"duplicate_{key.rpartition('.')[2]}",
                f"another device has {name}, so this one does not get it: give each its own {key}; if this "
                "device was set up anew, it gets it within 30 s",
            )
        )
    for name, seconds in facts["contested"].items():
        if seconds < RECENT and name not in refused:
            key = _key(name, facts)
            found.append(
                _found(
                    f"duplicate_{key.rpartition('.')[2]}",
                    f"another device wanted {name}, which is ours, {seconds:.0f} s ago: give each its "
                    f"own {key}",
                )
            )
    for ip, seconds in facts["conflicts"].items():
        if seconds < RECENT:
            text = (
                f"two peers showed the overlay IP {ip}, {seconds:.0f} s ago; the first keeps it: give each "
                "its own local_ip"
            )
            found.append(_found("peer_conflict", text))
    return found


def _key(name: str, facts: dict[str, Any]) -> str:
    return "peer.id" if name == facts["name"] else "network.local_ip"


def _nobody(facts: dict[str, Any]) -> list[dict[str, str]]:
    asked = sum(facts["drops"].get(reason, 0) for reason in UNANSWERED)
    if asked and not facts["handshakes"]:
        return [_found("wrong_key", _WRONG_KEY)]
    return []


def _identities(facts: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    for ip, each in facts["identities_refused"].items():
        if each["seconds_ago"] < RECENT:
            text = (
                f"{ip} answers with another key ({each['fingerprint']}) and is refused: if that device was "
                f"set up anew, `shadowmesh trust {ip}`; if not, somebody with the network key plays it"
            )
            found.append(_found("identity_refused", text))
    for peer in facts["peers"]:
        if peer["identity"] == "changed":
            who = " ".join(filter(None, (peer["name"], ",".join(peer["ips"]))))
            text = (
                f"{who} has another key than before ({peer['fingerprint']}): was that device set up anew? "
                "peers.verify: strict refuses such a change"
            )
            found.append(_found("identity_changed", text))
    return found
