"""Invariant: given any bytes, a decoder returns a value or raises its one named error, and changes nothing.

Frames: FrameError. Peer messages, records and their JSON: MessageError. Headers of packets: never an error.
"""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference import messages
from shadowmesh.errors import FrameError, MessageError
from shadowmesh.wire import frame, ip, message, record
from shadowmesh.wire.record import Bye, Info, Probe

HEADS = [b"", b"\x10", message.HELLO, message.ANSWER, message.FINISH, message.SEALED, b"\x45", b"\x60"]
data = st.builds(bytes.__add__, st.sampled_from(HEADS), st.binary(max_size=200))
sizes = st.sampled_from([75, 76, 1211, 1212, 1255, 1256, 1257, 16_459, 16_460, 16_461, 17_596, 17_597])
address = st.ip_addresses().map(lambda each: each.packed)
word = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=63)
info = st.builds(
    Info,
    seq=st.integers(0, 2**53 - 1),
    id=word,
    ips=st.lists(address, max_size=8).map(tuple),
    routes=st.lists(st.sampled_from(["10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "::/0"]), max_size=6).map(tuple),
    agent=word,
    mtu=st.integers(0, 65_535),
    versions=st.lists(st.integers(1, 15), min_size=1, max_size=16).map(tuple),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70)
texts = st.sampled_from(["10.10.10.2", "::1", "fe80::1%x", "::ffff:10.10.10.2", "1.2.3.4/0", "fe80::%x/64"])
values = st.recursive(scalars | texts, lambda inner: st.lists(inner, max_size=10), max_leaves=12)
KEYS = ["seq", "id", "ips", "routes", "agent", "mtu", "versions", "type"]
near_misses = st.builds(
    lambda kind, good, changes: json.dumps(json.loads(good.encode()) | {"type": kind} | changes).encode(),
    st.sampled_from(["info", "probe", "probe_ack", "bye", "later"]),
    info,
    st.dictionaries(st.sampled_from(KEYS), values, max_size=2),
)


@given(data)
def test_frames(data: bytes) -> None:
    try:
        destination, source, payload = frame.unpack(data)
    except FrameError:
        assert len(data) < frame.MIN_FRAME or data[0] != frame.DATA
    else:
        assert frame.pack(destination, source, payload) == data


@given(data, sizes)
def test_handshake_messages(data: bytes, size: int) -> None:
    for each in (data, data.ljust(size, b"\0")):
        try:
            value = message.unpack_handshake(each)
        except MessageError:
            continue
        match value:
            case message.Hello():
                again = message.pack_hello(*value)
            case message.Answer():
                again = message.pack_answer(*value)
            case message.Finish():
                again = message.pack_finish(*value)
        assert again == each


@given(
    st.binary(max_size=60)
    | st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=20))).map(
        lambda records: b"".join(record.pack(*each) for each in records)
    )
)
def test_records(plaintext: bytes) -> None:
    """And they are those that the second implementation sees."""
    view = memoryview(plaintext)
    try:
        found = [(kind, plaintext[start:end]) for kind, start, end in record.split(view, len(view))]
    except MessageError:
        try:
            messages.records(plaintext)
        except messages.FormatError:
            return
        raise
    assert found == messages.records(plaintext)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=100) | near_misses | near_misses.map(lambda body: body[:-3]))
def test_json_records(body: bytes) -> None:
    try:
        value = record.decode_json(body)
    except MessageError:
        return
    assert value is None or isinstance(value, Info | Probe | Bye)
    if isinstance(value, Info):
        assert len(value.ips) <= record.MAX_IPS
        assert not any(len(each) == 16 and each.startswith(bytes(10) + b"\xff\xff") for each in value.ips)
        assert value.id.isprintable()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(info)
def test_an_info_survives(value: Info) -> None:
    """But for IPv4-mapped addresses, which are written as IPv4."""
    mapped = bytes(10) + b"\xff\xff"
    ips = tuple(each[12:] if len(each) == 16 and each.startswith(mapped) else each for each in value.ips)
    decoded = record.decode_json(value.encode())
    assert isinstance(decoded, Info)
    assert decoded.ips == ips
    assert record.decode_json(decoded.encode()) == decoded


@given(data, st.integers(0, 40), st.integers(0, 40))
def test_packet_headers(data: bytes, before: int, after: int) -> None:
    """A key is that of a packet that fills its place exactly, whatever lies around it."""
    key = ip.flow_key(data, 0, len(data))
    assert len(key) in (0, 8, 32)
    assert ip.flow_key(bytes(before) + data + bytes(after), before, before + len(data)) == key
    if key:
        assert ip.flow_key(data + b"\0", 0, len(data) + 1) == b""
        assert data.endswith(key, 0, 20 if len(key) == 8 else 40)


@given(address)
def test_addresses(address: bytes) -> None:
    assert ip.is_unroutable(address) in (True, False)
