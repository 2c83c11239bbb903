"""Records: the frame around what a sealed message holds, and the JSON ones. Vectors: tests/vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest

from shadowmesh.errors import MessageError
from shadowmesh.wire.record import (
    HEADER_SIZE,
    JSON,
    KEEPALIVE,
    MAX_PLAINTEXT,
    MAX_RECORDS,
    PACKET,
    PAD,
    Bye,
    Info,
    Probe,
    decode_json,
    pack,
    padded_size,
    padding,
    split,
)

INFO = Info(
    seq=3,
    id="laptop",
    ips=(ip_address("10.10.10.1").packed, ip_address("fd00::1").packed),
    routes=("192.168.7.0/24",),
    agent="shadowmesh/0.2.0",
    mtu=1400,
    versions=(1,),
)
FIELDS = json.loads(INFO.encode())


def records(plaintext: bytes) -> list[tuple[int, bytes]]:
    return [(kind, plaintext[start:end]) for kind, start, end in split(memoryview(plaintext), len(plaintext))]


def test_split_gives_what_was_packed() -> None:
    packed = pack(PACKET, b"one") + pack(JSON, memoryview(b"two")) + pack(9, b"")
    assert records(packed + padding(len(packed)))[:3] == [(PACKET, b"one"), (JSON, b"two"), (9, b"")]


def test_split_looks_no_further_than_size() -> None:
    whole = memoryview(pack(PACKET, b"one") + b"\xff" * 100)
    assert split(whole, 7) == [(PACKET, 4, 7)]


@pytest.mark.parametrize("size", range(1, 100))
def test_padding_fills_a_multiple_of_16_with_4_to_19_bytes(size: int) -> None:
    pad = padding(size)
    assert (size + len(pad)) % 16 == 0
    assert padded_size(size) == size + len(pad)
    assert len(pad) == 0 or 4 <= len(pad) <= 19
    if pad:
        assert records(pad) == [(PAD, bytes(len(pad) - HEADER_SIZE))]


def test_a_keepalive_is_padding_alone() -> None:
    assert bytes.fromhex("0000000c") + bytes(12) == KEEPALIVE
    assert records(KEEPALIVE) == [(PAD, bytes(12))]
    assert records(b"") == []


def test_the_largest_offload_packet_fits() -> None:
    assert padded_size(HEADER_SIZE + 10 + 65_535) <= MAX_PLAINTEXT


def test_at_most_4096_records() -> None:
    assert len(records(pack(9, b"") * MAX_RECORDS)) == MAX_RECORDS
    with pytest.raises(MessageError):
        records(pack(9, b"") * (MAX_RECORDS + 1))


@pytest.mark.parametrize(
    "plaintext", [b"\x01", b"\x01\x00\x00", b"\x01\x00\x00\x01", KEEPALIVE[:-1], KEEPALIVE + b"\x00"]
)
def test_records_that_do_not_fill_exactly(plaintext: bytes) -> None:
    with pytest.raises(MessageError):
        records(plaintext)


@pytest.mark.parametrize("value", [INFO, Probe(0, ack=False), Probe(2**53 - 1, ack=True), Bye()])
def test_json_round_trip(value: Info | Probe | Bye) -> None:
    assert decode_json(value.encode()) == value


def test_unknown_types_and_keys_are_ignored() -> None:
    assert decode_json(b'{"type":"weather","degrees":[1,2]}') is None
    assert decode_json(json.dumps(FIELDS | {"colour": {"a": 1}}).encode()) == INFO
    assert decode_json(b'{"type":"bye","why":"tired"}') == Bye()


def test_the_most_an_info_may_hold() -> None:
    most = replace(
        INFO,
        id="n" * 63,
        agent="a" * 64,
        ips=tuple(ip_address(f"fd00::{i}").packed for i in range(8)),
        routes=tuple(f"10.{i}.0.0/16" for i in range(64)),
        versions=tuple(range(1, 16)),
        seq=2**53 - 1,
        mtu=65_535,
    )
    assert decode_json(most.encode()) == most


def test_own_settings_too_long_for_an_info() -> None:
    routes = tuple(f"fd00:1111:2222:3333:4444:5555:{i:x}:0/112" for i in range(0x1000, 0x1080))
    with pytest.raises(ValueError, match="4096"):
        replace(INFO, routes=routes).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"seq": -1},
        {"seq": 2**53},
        {"seq": True},
        {"seq": 1.0},
        {"seq": "1"},
        {"id": "n" * 64},
        {"id": "\n"},
        {"id": "é"},
        {"id": None},
        {"agent": "a" * 65},
        {"ips": "10.10.10.1"},
        {"ips": ["10.10.10.256"]},
        {"ips": [1]},
        {"ips": ["10.10.10.1"] * 9},
        {"routes": ["10.0.0.1/8"]},
        {"routes": ["10.0.0.0/8"] * 65},
        {"routes": {}},
        {"mtu": 65_536},
        {"mtu": False},
        {"versions": []},
        {"versions": [0]},
        {"versions": [True]},
        {"versions": [16]},
        {"versions": ["1"]},
        {"versions": [1] * 17},
        {"versions": 1},
        {"max_plaintext": "130992"},
        {"max_plaintext": -1},
    ],
    ids=str,
)
def test_a_bad_info_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        decode_json(json.dumps(FIELDS | change).encode())


@pytest.mark.parametrize(
    ("said", "used"),
    [(None, 65_600), (0, 65_600), (100_000, 100_000), (130_992, 130_992), (2**53 - 1, 130_992)],
)
def test_how_much_a_peer_takes(said: int | None, used: int) -> None:
    info = decode_json(json.dumps(FIELDS if said is None else FIELDS | {"max_plaintext": said}).encode())
    assert isinstance(info, Info)
    assert info.max_plaintext == used
    assert decode_json(info.encode()) == info


@pytest.mark.parametrize("key", [key for key in FIELDS if key != "type"])
def test_an_info_lacks_nothing(key: str) -> None:
    with pytest.raises(MessageError):
        decode_json(json.dumps({k: v for k, v in FIELDS.items() if k != key}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"type":1}',
        b'{"type":"bye","type":"bye"}',
        b'{"type":"probe"}',
        b'{"type":"probe","id":9007199254740992}',
        b'{"type":"probe","id":true}',
        b'{"type":"probe","id":NaN}',
        b'{"type":"x","a":' + b"[" * 8 + b"]" * 8 + b"}",
        b'{"type":"x","a":' + b"[" * 3000,
        b'{"type":"bye"}' + b" " * 4096,
    ],
)
def test_bad_json_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        decode_json(body)
