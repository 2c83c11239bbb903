"""Cases of control.json, info.json and frames.json; `generate` writes them."""

from __future__ import annotations

import base64
import json
from typing import Any

from reference import messages, texts

ONE, TWO = bytes(range(16)).hex(), bytes(range(240, 256)).hex()
MANY = [n.to_bytes(16).hex() for n in range(1, 66)]
NONCE = base64.b64encode(bytes(range(100, 132))).decode()
SIGNATURE = base64.b64encode(bytes(range(64))).decode()
CHALLENGE: dict[str, Any] = {
    "type": "challenge",
    "version": 1,
    "nonce": NONCE,
    "server_name": "relay 1",
    "region": "eu-west",
    "max_frame": 131072,
    "keepalive_s": 20,
}
CLAIMS: dict[str, Any] = {
    "version": 1,
    "network": bytes(range(32)).hex(),
    "device": bytes(range(32, 64)).hex(),
    "instance": bytes(range(64, 80)).hex(),
    "relay": "relay.example",
    "addresses": [ONE, TWO],
    "agent": "shadowmesh/0.2.0",
}
JOIN: dict[str, Any] = {
    "type": "join",
    "claims": base64.b64encode(b"any bytes").decode(),
    "network_signature": SIGNATURE,
    "device_signature": base64.b64encode(bytes(range(64, 128))).decode(),
}
NOT_GIVEN = {"address": TWO, "code": "address_in_use"}
JOINED: dict[str, Any] = {
    "type": "joined",
    "remote": "203.0.113.9:51234",
    "held": [ONE],
    "refused": [NOT_GIVEN, {"address": ONE, "code": "too_many"}],
    "limits": {"addresses": 64, "max_frame": 131072},
}
ASK: dict[str, Any] = {"type": "addresses", "add": [ONE], "remove": [TWO]}
TOLD: dict[str, Any] = {"type": "addresses", "held": [ONE], "refused": [NOT_GIVEN]}
GONE: dict[str, Any] = {"type": "gone", "address": ONE, "reason": "not_here"}
PROBLEM: dict[str, Any] = {"type": "problem", "code": "bad_frame", "detail": "a ~"}
PAUSE: dict[str, Any] = {"type": "pause", "address": ONE}
DRAIN: dict[str, Any] = {"type": "drain", "reconnect_after_ms": 1500}
DRAIN_TEXT = '{"type":"drain","reconnect_after_ms":1500}'
INFO: dict[str, Any] = {
    "type": "info",
    "seq": 1,
    "id": "laptop",
    "ips": ["10.10.10.1", "fd00::1"],
    "routes": ["192.168.7.0/24", "fd00:7::/64"],
    "agent": "shadowmesh/0.2.0",
    "mtu": 1400,
    "versions": [1],
}
INFO_TEXT = json.dumps(INFO, separators=(",", ":"))

Case = tuple[str, str, "dict[str, Any] | str | bytes", int]


def case(what: str, origin: str, value: dict[str, Any] | str | bytes, size: int = 0) -> Case:
    """`size`: spaces are appended until the text has that many bytes."""
    return what, origin, value, size


def without(value: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k != key}


def nested(text: str, levels: int) -> str:
    """`text` with an unknown key that makes it so many levels deep."""
    return text[:-1] + ',"x":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def bad_json(origin: str, good: str) -> list[Case]:
    """Section 0, on top of a text that is accepted."""
    start, kind = good[:-1], json.loads(good)["type"]
    return [
        case("empty", origin, ""),
        case("not JSON", origin, start),
        case("text behind the object", origin, good + "{}"),
        case("a comma too many", origin, start + ",}"),
        case("a list", origin, "[" + good + "]"),
        case("a string", origin, json.dumps(good)),
        case("null", origin, "null"),
        case("a duplicate key", origin, start + f',"type":"{kind}"}}'),
        case("a duplicate key, written with an escape", origin, start + f',"ty\\u0070e":"{kind}"}}'),
        case("a duplicate of an unknown key, deeper", origin, start + ',"x":{"y":1,"y":2}}'),
        case("NaN", origin, start + ',"x":NaN}'),
        case("Infinity", origin, start + ',"x":Infinity}'),
        case("-Infinity", origin, start + ',"x":[-Infinity]}'),
        case("a number beyond the range of a double", origin, start + ',"x":1e999}'),
        case("a number beyond the range of a double, deeper", origin, start + ',"x":[{"y":-1E400}]}'),
        case("nesting 9", origin, nested(good, 9)),
        case("nesting 1500", origin, nested(good, 1500)),
        case("invalid UTF-8", origin, start.encode() + b',"x":"\xff"}'),
        case("a surrogate in UTF-8", origin, start.encode() + b',"x":"\xed\xa0\x80"}'),
        case("a byte order mark", origin, b"\xef\xbb\xbf" + good.encode()),
        case("UTF-16", origin, good.encode("utf-16-le")),
        case("no type", origin, start.replace(f'"type":"{kind}"', '"x":1') + "}"),
        case("type is a number", origin, good.replace(f'"{kind}"', "1")),
    ]


def ignored(origin: str, good: str) -> list[Case]:
    return [
        case("unknown keys", origin, good[:-1] + ',"x":{"type":"gone"},"\u00e9":"\u00e9\\n\\u0000","y":1.5}'),
        case("unknown type", origin, '{"type":"weather","degrees":[21.5,null,true]}'),
        case("nesting 8", origin, nested(good, 8)),
        case("brackets in a string are no nesting", origin, good[:-1] + ',"x":"\\"[[[[[[[[[{{{{{"}'),
        case("white space", origin, "\r\n\t " + good.replace('":', '" : ') + "\n"),
        case("characters written as escapes", origin, good.replace('"t', '"\\u0074')),
    ]


def control_accepted() -> list[Case]:
    bare = without(without(JOINED, "held"), "refused")
    return [
        case("challenge", "relay", CHALLENGE),
        case("the least max_frame", "relay", CHALLENGE | {"max_frame": 66048}),
        case("join", "client", JOIN),
        case("joined", "relay", JOINED),
        case("absent lists of joined are empty", "relay", bare),
        case("addresses of a client", "client", ASK),
        case("absent lists of a client are empty", "client", {"type": "addresses"}),
        case("64 addresses", "client", ASK | {"add": MANY[:64]}),
        case("addresses of a relay", "relay", TOLD),
        case("absent lists of a relay are empty", "relay", {"type": "addresses"}),
        case("gone, not_here", "relay", GONE),
        case("gone, disconnected", "relay", GONE | {"reason": "disconnected"}),
        case("problem", "relay", PROBLEM),
        case("detail of 200", "relay", PROBLEM | {"detail": "d" * 200}),
        case("pause", "relay", PAUSE),
        case("resume", "relay", PAUSE | {"type": "resume"}),
        case("drain", "relay", DRAIN),
        case("8192 bytes", "relay", DRAIN, 8192),
        *ignored("relay", DRAIN_TEXT),
        case("a type of the other side", "client", DRAIN),
        case("claims", "claims", CLAIMS),
        case("48 addresses in claims", "claims", CLAIMS | {"addresses": MANY[:48]}),
        case("agent of 64", "claims", CLAIMS | {"agent": "a" * 64}),
        case("IPv6 host in claims", "claims", CLAIMS | {"relay": "fd00::1"}),
        case("unknown keys and a type in claims", "claims", CLAIMS | {"type": "join", "x": [1]}),
    ]


def control_refused() -> list[Case]:
    cases = bad_json("relay", DRAIN_TEXT)
    cases += [
        case("8193 bytes", "relay", DRAIN, 8193),
        case("8193 bytes in fewer characters", "relay", DRAIN_TEXT[:-1] + ',"x":"\u20ac"}', 8193),
        case("true for 1", "relay", CHALLENGE | {"version": True}),
        case("a number as a string", "relay", DRAIN | {"reconnect_after_ms": "1500"}),
        case("a negative number", "relay", DRAIN | {"reconnect_after_ms": -1}),
        case("true for a number of milliseconds", "relay", DRAIN | {"reconnect_after_ms": True}),
        case("max_frame too small", "relay", CHALLENGE | {"max_frame": 66047}),
        case(
            "max_frame too small in limits",
            "relay",
            JOINED | {"limits": {"addresses": 64, "max_frame": 66047}},
        ),
        case("limits are a list", "relay", JOINED | {"limits": [64, 131072]}),
        case("true in limits", "relay", JOINED | {"limits": {"addresses": True, "max_frame": 131072}}),
        case("base64 without padding", "relay", CHALLENGE | {"nonce": NONCE.rstrip("=")}),
        case("base64, unused bits are not zero", "relay", CHALLENGE | {"nonce": NONCE[:-2] + "N="}),
        case("base64 with a line end", "relay", CHALLENGE | {"nonce": NONCE + "\n"}),
        case("base64 with a space inside", "relay", CHALLENGE | {"nonce": NONCE[:8] + " " + NONCE[8:]}),
        case("base64 padded twice", "relay", CHALLENGE | {"nonce": NONCE + "===="}),
        case(
            "base64 of the URL alphabet",
            "client",
            JOIN | {"network_signature": base64.urlsafe_b64encode(b"\xff" * 64).decode()},
        ),
        case("base64 is a list", "relay", CHALLENGE | {"nonce": [NONCE]}),
    ]
    for size in (31, 33):
        short = base64.b64encode(bytes(size)).decode()
        cases.append(case(f"nonce of {size} bytes", "relay", CHALLENGE | {"nonce": short}))
    for size in (63, 65):
        short = base64.b64encode(bytes(size)).decode()
        for key in ("network_signature", "device_signature"):
            cases.append(case(f"{key} of {size} bytes", "client", JOIN | {key: short}))
    hexes = {
        "upper-case hex": TWO.upper(),
        "hex too short": ONE[:-2],
        "hex too long": ONE + "00",
        "half a byte of hex": ONE[:-1],
        "not hex": "g" * 32,
        "a digit that is not ASCII": ONE[:-1] + "\u0663",
        "a space in hex": ONE[:-2] + " 0",
        "hex is a number": 0,
    }
    cases += [case(what, "relay", GONE | {"address": value}) for what, value in hexes.items()]
    cases += [
        case("text is not ASCII", "relay", CHALLENGE | {"server_name": "caf\u00e9"}),
        case("a line end in text", "relay", PROBLEM | {"detail": "a\nb"}),
        case("a zero in text", "relay", PROBLEM | {"code": "a\0"}),
        case("DEL in text", "relay", GONE | {"reason": "\x7f"}),
        case("text is null", "relay", PROBLEM | {"code": None}),
        case("detail of 201", "relay", PROBLEM | {"detail": "d" * 201}),
        case("65 addresses to add", "client", ASK | {"add": MANY}),
        case("65 addresses to remove", "client", ASK | {"remove": MANY}),
        case("65 addresses held", "relay", TOLD | {"held": MANY}),
        case("65 addresses refused", "relay", TOLD | {"refused": [NOT_GIVEN] * 65}),
        case("addresses are an object", "client", ASK | {"add": {ONE: 1}}),
        case("an upper-case address in a list", "client", ASK | {"add": [ONE, TWO.upper()]}),
        case("an absent list written as null", "client", ASK | {"remove": None}),
        case("a refused address without code", "relay", TOLD | {"refused": [{"address": ONE}]}),
        case("a refused address alone", "relay", TOLD | {"refused": [ONE]}),
    ]
    for origin, value in (
        ("relay", CHALLENGE),
        ("client", JOIN),
        ("relay", JOINED),
        ("relay", GONE),
        ("relay", DRAIN),
        ("claims", CLAIMS),
    ):
        name = value.get("type", "claims")
        for key in value:
            if key not in ("type", "held", "refused"):
                cases.append(case(f"{name} without {key}", origin, without(value, key)))
    claims_text = json.dumps(CLAIMS, separators=(",", ":"))
    cases += [
        case("claims: 49 addresses", "claims", CLAIMS | {"addresses": MANY[:49]}),
        case("claims: no address", "claims", CLAIMS | {"addresses": []}),
        case("claims: true for 1", "claims", CLAIMS | {"version": True}),
        case("claims: upper-case hex", "claims", CLAIMS | {"network": "AB" * 32}),
        case("claims: network of 31 bytes", "claims", CLAIMS | {"network": "ab" * 31}),
        case("claims: device of 33 bytes", "claims", CLAIMS | {"device": "ab" * 33}),
        case("claims: instance of 15 bytes", "claims", CLAIMS | {"instance": "ab" * 15}),
        case("claims: upper-case host", "claims", CLAIMS | {"relay": "Relay.example"}),
        case("claims: host is not ASCII", "claims", CLAIMS | {"relay": "caf\u00e9.example"}),
        case("claims: agent of 65", "claims", CLAIMS | {"agent": "a" * 65}),
        case("claims: not an object", "claims", "[]"),
        case("claims: a duplicate key", "claims", claims_text[:-1] + ',"version":1}'),
        case("claims: NaN", "claims", claims_text[:-1] + ',"x":NaN}'),
        case("claims: nesting 9", "claims", nested(claims_text, 9)),
        case("claims: invalid UTF-8", "claims", claims_text.encode()[:-1] + b',"x":"\xc3("}'),
    ]
    return cases


def info_accepted() -> list[Case]:
    most = {"seq": 2**53 - 1, "mtu": 65535, "id": "i" * 63, "agent": "a" * 64, "versions": [15] * 16}
    return [
        case("info", "peer", INFO),
        case("every number and text at its limit", "peer", INFO | most),
        case("zeros and empty texts", "peer", INFO | {"seq": 0, "mtu": 0, "id": "", "agent": ""}),
        case("no IPs, no routes", "peer", INFO | {"ips": [], "routes": []}),
        case("takes long messages", "peer", INFO | {"max_plaintext": 130992}),
        case("takes as little as all", "peer", INFO | {"max_plaintext": 0}),
        case("8 IPs", "peer", INFO | {"ips": [f"10.10.10.{n}" for n in range(1, 9)]}),
        case("64 routes", "peer", INFO | {"routes": [f"10.{n}.0.0/16" for n in range(64)]}),
        case("an IPv4-mapped IP is IPv4", "peer", INFO | {"ips": ["::ffff:10.10.10.1", "::FFFF:A0A:A02"]}),
        case(
            "other spellings of IPv6", "peer", INFO | {"ips": ["FD00:0:0::0001"], "routes": ["FD00:7:0::/48"]}
        ),
        case("default routes", "peer", INFO | {"routes": ["0.0.0.0/0", "::/0"]}),
        case("host routes", "peer", INFO | {"routes": ["10.0.0.7/32", "fd00::7/128"]}),
        case("4096 bytes", "peer", INFO, 4096),
        case("probe", "peer", {"type": "probe", "id": 7}),
        case("probe, the largest id", "peer", {"type": "probe", "id": 2**53 - 1}),
        case("probe_ack", "peer", {"type": "probe_ack", "id": 0}),
        case("conflict", "peer", {"type": "conflict", "ip": "10.10.10.1"}),
        case("conflict about IPv6", "peer", {"type": "conflict", "ip": "FD00::0:1"}),
        case("conflict about an IPv4-mapped IP", "peer", {"type": "conflict", "ip": "::ffff:10.10.10.1"}),
        case("bye", "peer", {"type": "bye"}),
        case("bye with unknown keys", "peer", {"type": "bye", "why": "tired"}),
        *ignored("peer", INFO_TEXT),
    ]


def info_refused() -> list[Case]:
    changes: dict[str, dict[str, Any]] = {
        "9 IPs": {"ips": [f"10.10.10.{n}" for n in range(1, 10)]},
        "65 routes": {"routes": [f"10.{n}.0.0/16" for n in range(65)]},
        "id of 64": {"id": "i" * 64},
        "id is not ASCII": {"id": "caf\u00e9"},
        "id with a line end": {"id": "a\n"},
        "id is a number": {"id": 7},
        "agent of 65": {"agent": "a" * 65},
        "seq 2^53": {"seq": 2**53},
        "seq -1": {"seq": -1},
        "seq true": {"seq": True},
        "seq is a string": {"seq": "1"},
        "mtu 65536": {"mtu": 65536},
        "mtu -1": {"mtu": -1},
        "mtu true": {"mtu": True},
        "no versions": {"versions": []},
        "17 versions": {"versions": [1] * 17},
        "version 0": {"versions": [1, 0]},
        "version 16": {"versions": [16]},
        "version true": {"versions": [True]},
        "version is a string": {"versions": ["1"]},
        "versions are a number": {"versions": 1},
        "max_plaintext 2^53": {"max_plaintext": 2**53},
        "max_plaintext true": {"max_plaintext": True},
        "max_plaintext is a string": {"max_plaintext": "130992"},
        "an IP that is none": {"ips": ["10.10.10.256"]},
        "an IP with leading zeros": {"ips": ["10.10.10.01"]},
        "an IP with a prefix": {"ips": ["10.10.10.1/32"]},
        "an IP is a name": {"ips": ["laptop"]},
        "an IP is a number": {"ips": [168430081]},
        "IPs are a string": {"ips": "10.10.10.1"},
        "IPs are null": {"ips": None},
        "a route with host bits": {"routes": ["10.0.0.1/24"]},
        "an IPv6 route with host bits": {"routes": ["fd00::1/64"]},
        "a route of 33 bits": {"routes": ["10.0.0.0/33"]},
        "an IP with a scope": {"ips": ["fd00::1%eth0"]},
        "a route with a scope": {"routes": ["fd00::%1/64"]},
        "a route without a length": {"routes": ["10.0.0.7"]},
        "a route with a netmask": {"routes": ["10.0.0.0/255.0.0.0"]},
        "a route with a leading zero": {"routes": ["10.0.0.0/08"]},
        "a route is a name": {"routes": ["lan"]},
        "a route is a number": {"routes": [1]},
    }
    others: dict[str, dict[str, Any]] = {
        "probe 2^53": {"type": "probe", "id": 2**53},
        "probe -1": {"type": "probe", "id": -1},
        "probe true": {"type": "probe", "id": True},
        "probe without id": {"type": "probe"},
        "probe_ack 2^53": {"type": "probe_ack", "id": 2**53},
        "probe_ack with a string": {"type": "probe_ack", "id": "7"},
        "conflict without an IP": {"type": "conflict"},
        "conflict about a name": {"type": "conflict", "ip": "laptop"},
        "conflict about a number": {"type": "conflict", "ip": 7},
        "conflict about a prefix": {"type": "conflict", "ip": "10.10.10.1/32"},
        "conflict with a scope": {"type": "conflict", "ip": "fe80::1%eth0"},
    }
    return [
        *bad_json("peer", INFO_TEXT),
        *(case(what, "peer", INFO | change) for what, change in changes.items()),
        *(case(f"info without {key}", "peer", without(INFO, key)) for key in INFO if key != "type"),
        case("4097 bytes", "peer", INFO, 4097),
        case("4097 bytes of an unknown type", "peer", {"type": "weather"}, 4097),
        *(case(what, "peer", value) for what, value in others.items()),
    ]


def written(each: Case) -> tuple[dict[str, Any], bytes]:
    """A case as the file shows it, and its bytes."""
    what, origin, value, size = each
    if isinstance(value, dict):
        value = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    data = value if isinstance(value, bytes) else value.encode()
    shown: dict[str, Any] = {"what": what, "from": origin}
    shown |= {"hex": value.hex()} if isinstance(value, bytes) else {"text": value}
    if size:
        shown["spaces"] = size - len(data)
        data = data.ljust(size)
    return shown, data


def both(accepted: list[Case], refused: list[Case]) -> dict[str, Any]:
    """The cases, each tried on the reference."""
    taken = []
    for each in accepted:
        shown, data = written(each)
        taken.append(shown | {"decoded": texts.decode(each[1], data)})
    for each in refused:
        try:
            texts.decode(each[1], written(each)[1])
        except texts.Refused:
            continue
        raise AssertionError(each[0])
    return {"accepted": taken, "refused": [written(each)[0] for each in refused]}


SHOWN = (
    "`text` is the JSON as a string, sent as UTF-8 (`hex`: those bytes instead) and followed by `spaces` "
    "spaces where that key is there. `decoded`: its values, with bytes as hex and without unknown keys; "
    "null: a type to be ignored. "
)


def control_vectors() -> dict[str, Any]:
    """Section 3: control messages and claims."""
    return {
        "about": SHOWN
        + "`from` says who sent it, a relay or a client; `claims` is the inside of a join. Limits "
        "that docs/protocol.md leaves to each implementation are not tested.",
        **both(control_accepted(), control_refused()),
    }


def info_vectors() -> dict[str, Any]:
    """Section 4: records of kind 3."""
    return {
        "about": SHOWN
        + "Bodies of kind 3 records. IPs are decoded to their 4 or 16 bytes, an IPv4-mapped one "
        "to 4; routes are decoded to their usual spelling.",
        **both(info_accepted(), info_refused()),
    }


def frame_vectors() -> dict[str, Any]:
    """Section 3: data frames."""
    one, two = bytes.fromhex(ONE), bytes.fromhex(TWO)
    payloads = {
        "the least": b"\0",
        "a keepalive": messages.seal(bytes(range(32)), 0xFFEEDDCC, 0, messages.KEEPALIVE),
        "a payload is any bytes": bytes(range(256)),
    }
    whole = texts.pack_frame(one, two, b"\0")
    refused = {
        "empty": b"",
        "the type alone": whole[:1],
        "half a source": whole[:25],
        "no payload": whole[:33],
        **{
            f"first byte {first:02x}": bytes([first]) + whole[1:]
            for first in (0, 0x0F, 0x11, 0x14, 0x7B, 0xFF)
        },
    }
    for what, frame in refused.items():
        try:
            texts.unpack_frame(frame)
        except texts.Refused:
            continue
        raise AssertionError(what)
    accepted = []
    for what, payload in payloads.items():
        frame = texts.pack_frame(one, two, payload)
        assert texts.unpack_frame(frame) == (one, two, payload)
        accepted.append(
            {"what": what, "destination": ONE, "source": TWO, "payload": payload.hex(), "frame": frame.hex()}
        )
    return {
        "about": "All byte strings are hex unless a key says otherwise. Data frames between client and "
        "relay, by their form alone; who may send from which address is the relay's business.",
        "accepted": accepted,
        "refused": [{"what": what, "frame": frame.hex()} for what, frame in refused.items()],
    }
