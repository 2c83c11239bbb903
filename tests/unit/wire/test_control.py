"""Control messages: their exact text, and every rule of the strict decoders."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shadowmesh.errors import ControlError, LocalProtocolError
from shadowmesh.wire import control
from shadowmesh.wire.control import (
    Addresses,
    AddressesResult,
    Challenge,
    Claims,
    Drain,
    FromClient,
    FromRelay,
    Gone,
    Join,
    Joined,
    Limits,
    Pause,
    Problem,
    Refused,
    Resume,
    decode_claims,
    decode_from_client,
    decode_from_relay,
    encode,
    encode_claims,
    strict_json,
)

A, B = bytes(range(16)), bytes(range(16, 32))

CHALLENGE = Challenge(1, bytes(32), "relay-us-east-1", "us-east-1", 131072, 20)
JOIN = Join(b"{}", bytes(64), bytes(range(64)))
JOINED = Joined("203.0.113.9:51234", (A,), (Refused(B, "address_in_use"),), Limits(64, 131072))
CLAIMS = Claims(1, bytes(32), bytes(range(32)), A, "relay.example", (A, B), "shadowmesh/0.2.0")

FROM_CLIENT: list[FromClient] = [JOIN, Addresses((A,), (B,)), Addresses()]
FROM_RELAY: list[FromRelay] = [
    CHALLENGE,
    JOINED,
    AddressesResult((A, B), (Refused(B, "too_many"),)),
    AddressesResult(),
    Gone(A, "not_here"),
    Pause(A),
    Resume(B),
    Problem("bad_frame", "in words"),
    Problem("foreign_source"),
    Drain(1500),
]


@pytest.mark.parametrize("message", FROM_CLIENT)
def test_client_round_trip(message: FromClient) -> None:
    assert decode_from_client(encode(message)) == message
    assert decode_from_client(encode(message).encode()) == message


@pytest.mark.parametrize("message", FROM_RELAY)
def test_relay_round_trip(message: FromRelay) -> None:
    assert decode_from_relay(encode(message)) == message


def test_exact_text() -> None:
    assert encode(Gone(A, "disconnected")) == (
        '{"type":"gone","address":"000102030405060708090a0b0c0d0e0f","reason":"disconnected"}'
    )
    assert json.loads(encode(CHALLENGE)) == {
        "type": "challenge",
        "version": 1,
        "nonce": "A" * 43 + "=",
        "server_name": "relay-us-east-1",
        "region": "us-east-1",
        "max_frame": 131072,
        "keepalive_s": 20,
    }
    assert json.loads(encode(JOINED)) == {
        "type": "joined",
        "remote": "203.0.113.9:51234",
        "held": [A.hex()],
        "refused": [{"address": B.hex(), "code": "address_in_use"}],
        "limits": {"addresses": 64, "max_frame": 131072},
    }
    assert json.loads(encode_claims(CLAIMS)) == {
        "version": 1,
        "network": "00" * 32,
        "device": bytes(range(32)).hex(),
        "instance": A.hex(),
        "relay": "relay.example",
        "addresses": [A.hex(), B.hex()],
        "agent": "shadowmesh/0.2.0",
    }


def test_the_largest_messages_fit() -> None:
    addresses = tuple(bytes([i]) * 16 for i in range(64))
    refused = tuple(Refused(address, "address_in_use") for address in addresses)
    for message in (
        Joined("x" * 64, addresses, refused, Limits(64, 131072)),
        AddressesResult(addresses, refused),
    ):
        assert decode_from_relay(encode(message)) == message
    claims = encode_claims(replace(CLAIMS, relay="r" * 255, addresses=addresses[:48], agent="a" * 64))
    assert decode_from_client(encode(replace(JOIN, claims=claims))) is not None
    assert decode_claims(claims).addresses == addresses[:48]


def test_encode_cuts_text_of_others() -> None:
    message = decode_from_relay(encode(Problem("x", "grün\n" + "y" * 300)))
    assert message == Problem("x", "gr?n?" + "y" * 195)
    assert decode_claims(encode_claims(replace(CLAIMS, agent="ü" * 99))).agent == "?" * 64


def test_encode_refuses_what_is_too_long() -> None:
    with pytest.raises(LocalProtocolError):
        encode(Addresses(add=tuple(A for _ in range(300))))
    with pytest.raises(LocalProtocolError):
        encode_claims(replace(CLAIMS, relay="r" * 9000))


def test_unknown_types_and_keys_are_ignored() -> None:
    assert decode_from_client('{"type":"later","x":[1]}') is None
    assert decode_from_client(encode(CHALLENGE)) is None
    assert decode_from_relay('{"type":"join"}') is None
    assert decode_from_relay(
        '{"type":"drain","reconnect_after_ms":1,"later":{"a":[null,true,1.5]}}'
    ) == Drain(1)
    assert decode_from_relay('{"type":"problem","code":"x"}') == Problem("x", "")


def changed(message: FromClient | FromRelay, **changes: Any) -> str:
    fields = json.loads(encode(message))
    fields.update(changes)
    return json.dumps({key: value for key, value in fields.items() if value is not ...})


HEX = A.hex()


@pytest.mark.parametrize(
    "text",
    [
        changed(JOIN, claims=...),
        changed(JOIN, claims=7),
        changed(JOIN, claims=""),
        changed(JOIN, claims="e30"),  # no padding
        changed(JOIN, claims="e31="),  # unused bits
        changed(JOIN, claims="e30=\n"),
        changed(JOIN, claims="e3 0="),
        changed(JOIN, claims="e30=e30="),
        changed(JOIN, claims="-_-_"),
        changed(JOIN, claims="é30="),
        changed(JOIN, network_signature=b64encode(bytes(63)).decode()),
        changed(JOIN, device_signature=b64encode(bytes(65)).decode()),
        changed(Addresses(), add=None),
        changed(Addresses(), add=HEX),
        changed(Addresses(), add=[HEX.upper()]),
        changed(Addresses(), add=[HEX[:-1]]),
        changed(Addresses(), add=[HEX + "0"]),
        changed(Addresses(), add=[" " + HEX[1:]]),
        changed(Addresses(), add=[HEX[:-1] + "٣"]),
        changed(Addresses(), add=[7]),
        changed(Addresses(), remove=[HEX] * 65),
    ],
)
def test_malformed_from_client(text: str) -> None:
    with pytest.raises(ControlError):
        decode_from_client(text)


@pytest.mark.parametrize(
    "text",
    [
        changed(CHALLENGE, version=True),
        changed(CHALLENGE, version=1.0),
        changed(CHALLENGE, version="1"),
        changed(CHALLENGE, version=-1),
        changed(CHALLENGE, nonce=b64encode(bytes(31)).decode()),
        changed(CHALLENGE, server_name="ü"),
        changed(CHALLENGE, server_name="a\nb"),
        changed(CHALLENGE, server_name="a\x7f"),
        changed(CHALLENGE, region="x" * 64),
        changed(CHALLENGE, region=None),
        changed(CHALLENGE, max_frame=66047),
        changed(CHALLENGE, max_frame=2**31),
        changed(CHALLENGE, keepalive_s=0),
        changed(CHALLENGE, keepalive_s=True),
        changed(CHALLENGE, keepalive_s=3601),
        changed(CHALLENGE, keepalive_s="20"),
        changed(JOINED, limits=...),
        changed(JOINED, limits=[]),
        changed(JOINED, limits={"addresses": 64}),
        changed(JOINED, limits={"addresses": 0, "max_frame": 131072}),
        changed(JOINED, held=[HEX] * 65),
        changed(JOINED, refused=[HEX]),
        changed(JOINED, refused=[{"address": HEX}]),
        changed(JOINED, refused=[{"code": "x"}]),
        changed(JOINED, refused={}),
        changed(JOINED, remote=None),
        changed(Gone(A, "x"), address=None),
        changed(Gone(A, "x"), reason=1),
        changed(Pause(A), address="00"),
        changed(Resume(A), address=None),
        changed(Problem("x"), detail="x" * 201),
        changed(Problem("x"), detail=None),
        changed(Drain(1), reconnect_after_ms=-1),
        changed(Drain(1), reconnect_after_ms=600_001),
        changed(Drain(1), reconnect_after_ms=1.5),
    ],
)
def test_malformed_from_relay(text: str) -> None:
    with pytest.raises(ControlError):
        decode_from_relay(text)


def claims_with(**changes: Any) -> bytes:
    return json.dumps(json.loads(encode_claims(CLAIMS)) | changes).encode()


def test_claims() -> None:
    assert decode_claims(encode_claims(CLAIMS)) == CLAIMS
    assert decode_claims(claims_with(later=1)) == CLAIMS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        claims_with(version="1"),
        claims_with(network="00" * 31),
        claims_with(device=HEX),
        claims_with(instance="00" * 32),
        claims_with(relay=""),
        claims_with(relay="Relay.example"),
        claims_with(relay="rélay"),
        claims_with(relay="r" * 256),
        claims_with(addresses=[]),
        claims_with(addresses=[HEX] * 49),
        claims_with(agent="x" * 65),
        claims_with(agent=None),
        claims_with(later="x" * 9000),
    ],
)
def test_malformed_claims(data: bytes) -> None:
    with pytest.raises(ControlError):
        decode_claims(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"1",
        b'"x"',
        b"[]",
        b"{",
        b"}",
        b"{} {}",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":"\xff"}',
        b'{"a":"\n"}',
        b'{"a":"\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"a":1}',
        b"[" * 8000,
        b'{"a":' * 1500,
        b'{"a":' * 9 + b"1" + b"}" * 9,
        b'{"a":"' + b"\\",
    ],
)
def test_strict_json_refuses(data: bytes) -> None:
    with pytest.raises(ControlError):
        strict_json(data)


def test_strict_json_accepts() -> None:
    deepest = '{"a":' * 8 + '"[[[[[[[[[[\\"]{{{{{{{{{{"' + "}" * 8
    assert strict_json(deepest) == json.loads(deepest)
    assert strict_json('{"ä":[[],[],{},{}]}'.encode()) == {"ä": [[], [], {}, {}]}
    assert strict_json(' {"a" : -1.5e3, "b": true}\n') == {"a": -1500.0, "b": True}


@pytest.mark.parametrize("unit", ['"', '\\"', '"\\', "[", '{"', "\\", '""'])
def test_strict_json_is_quick_whatever_comes(unit: str) -> None:
    begun = time.process_time()
    for text in (unit * (8000 // len(unit)), '{"' + unit * (8000 // len(unit))):
        with pytest.raises(ControlError):
            strict_json(text)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("decode", [decode_from_client, decode_from_relay])
def test_type_and_length(decode: Callable[[str | bytes], object]) -> None:
    for text in ("{}", '{"type":1}', '{"type":null}', '{"type":["join"]}'):
        with pytest.raises(ControlError, match="type"):
            decode(text)
    empty = '{"type":"later","x":""}'
    for fill, length in (("x", 1), ("ä", 2), ("\U0001f600", 4)):
        most = (control.MAX_CONTROL - len(empty)) // length
        assert decode(empty[:-2] + fill * most + empty[-2:]) is None
        for text in (empty[:-2] + fill * (most + 1) + empty[-2:], empty + " " * control.MAX_CONTROL):
            with pytest.raises(ControlError, match="too long"):
                decode(text)
            with pytest.raises(ControlError, match="too long"):
                decode(text.encode())


def test_errors_do_not_hold_what_was_received() -> None:
    for data in (
        b'{"secret":1,"secret":2}',
        b"secret",
        b'{"type":"gone","address":"secret"}',
        b'{"a":"\xffsecret',
    ):
        with pytest.raises(ControlError) as caught:
            decode_from_relay(data)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
