"""The formats of `wire` against the vectors of the second implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.crypto.session import Opener
from shadowmesh.errors import ControlError, FrameError, MessageError, OffloadError, SealedError
from shadowmesh.wire import frame, message, offload, record
from vectors.ours import TYPES, decode, written

HERE = Path(__file__).parent


def load(name: str) -> Any:
    return json.loads((HERE / name).read_text())


def named(case: dict[str, Any]) -> str:
    return str(case["what"])


RECORDS, OFFLOAD = load("records.json"), load("offload.json")
CONTROL, INFO, FRAMES = load("control.json"), load("info.json"), load("frames.json")


def text(case: dict[str, Any]) -> bytes:
    """The bytes of a JSON text."""
    data = bytes.fromhex(case["hex"]) if "hex" in case else str(case["text"]).encode()
    return data + b" " * int(case.get("spaces", 0))


def read(origin: str, data: bytes | str) -> Any:
    """What our decoder makes of a text."""
    return written(decode(origin, data))


@pytest.mark.parametrize("case", load("handshake.json")["cases"], ids=["infos", "info and packet"])
def test_handshake_messages(case: dict[str, Any]) -> None:
    a, b = (case[role]["index"].to_bytes(4) for role in ("initiator", "responder"))
    noises = [bytes.fromhex(step["noise"]) for step in case["messages"]]
    packed = [
        message.pack_hello(a, noises[0]),
        message.pack_answer(b, a, noises[1]),
        message.pack_finish(a, b, noises[2]),
    ]
    assert [data.hex() for data in packed] == [step["message"] for step in case["messages"]]
    assert [message.unpack_handshake(data) for data in packed] == [
        message.Hello(a, noises[0]),
        message.Answer(b, a, noises[1]),
        message.Finish(a, b, noises[2]),
    ]


@pytest.mark.parametrize("case", load("handshake.json")["cases"], ids=["infos", "info and packet"])
def test_handshake_payloads_start_with_an_info(case: dict[str, Any]) -> None:
    for step, name in zip(case["messages"][1:], ("bob", "alice"), strict=True):
        payload = bytes.fromhex(step["payload"])
        kind, start, end = record.split(memoryview(payload), len(payload))[0]
        info = record.decode_json(payload[start:end])
        assert kind == record.JSON
        assert isinstance(info, record.Info)
        assert info.id == name
        assert record.pack(kind, info.encode()) == payload[:end]


@pytest.mark.parametrize("case", RECORDS["accepted"], ids=named)
def test_records_accepted(case: dict[str, Any]) -> None:
    plaintext = bytes.fromhex(case["plaintext"]) * case["times"]
    found = record.split(memoryview(plaintext), len(plaintext))
    bodies = [[kind, plaintext[start:end].hex()] for kind, start, end in found if kind != record.PAD]
    assert bodies == case["records"] * case["times"]


@pytest.mark.parametrize("case", RECORDS["refused"], ids=named)
def test_records_refused(case: dict[str, Any]) -> None:
    plaintext = bytes.fromhex(case["plaintext"]) * case["times"]
    with pytest.raises(MessageError):
        record.split(memoryview(plaintext), len(plaintext))


def test_padding() -> None:
    """After nothing at all the padding is the whole keepalive, which `padding` leaves to KEEPALIVE."""
    expected = RECORDS["padding"]
    assert record.KEEPALIVE.hex() == expected.pop("0")
    assert {size: record.padding(int(size)).hex() for size in expected} == expected
    for size, pad in expected.items():
        assert record.padded_size(int(size)) == int(size) + len(pad) // 2


@pytest.mark.parametrize("case", OFFLOAD["accepted"], ids=named)
def test_offload_accepted(case: dict[str, Any]) -> None:
    body = bytearray.fromhex(case["body"])
    offload.sanitize(memoryview(body))
    assert body[:10].hex() == case["kernel"]
    assert body[10:].hex() == case["body"][20:]


@pytest.mark.parametrize("case", OFFLOAD["refused"], ids=named)
def test_offload_refused(case: dict[str, Any]) -> None:
    with pytest.raises(OffloadError):
        offload.sanitize(memoryview(bytearray.fromhex(case["body"])))


@pytest.mark.parametrize("case", CONTROL["accepted"] + INFO["accepted"], ids=named)
def test_texts_accepted(case: dict[str, Any]) -> None:
    data = text(case)
    assert read(case["from"], data) == case["decoded"]
    if case["from"] in ("relay", "client"):
        assert read(case["from"], data.decode()) == case["decoded"]


@pytest.mark.parametrize("case", CONTROL["refused"] + INFO["refused"], ids=named)
def test_texts_refused(case: dict[str, Any]) -> None:
    with pytest.raises(MessageError if case["from"] == "peer" else ControlError):
        read(case["from"], text(case))
    if case["from"] in ("relay", "client") and "text" in case:
        with pytest.raises(ControlError):
            read(case["from"], text(case).decode())


def test_every_type_is_among_the_texts() -> None:
    decoded = [case["decoded"] for case in CONTROL["accepted"] + INFO["accepted"]]
    assert {each["type"] for each in decoded if each and "type" in each} == {
        *TYPES.values(),
        "probe",
        "probe_ack",
    }


@pytest.mark.parametrize("case", FRAMES["accepted"], ids=named)
def test_frames_accepted(case: dict[str, Any]) -> None:
    parts = [bytes.fromhex(case[key]) for key in ("destination", "source", "payload")]
    assert frame.pack(*parts).hex() == case["frame"]
    assert list(frame.unpack(bytes.fromhex(case["frame"]))) == parts


@pytest.mark.parametrize("case", FRAMES["refused"], ids=named)
def test_frames_refused(case: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        frame.unpack(bytes.fromhex(case["frame"]))


@pytest.mark.parametrize("case", load("sealed.json")["refused"], ids=named)
def test_sealed_refused(case: dict[str, Any]) -> None:
    sealed = bytes.fromhex(case["message"])
    with pytest.raises(SealedError):
        Opener(bytes.fromhex(case["key"])).open_into(memoryview(sealed), memoryview(bytearray(100)))
