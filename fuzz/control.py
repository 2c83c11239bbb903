"""A JSON text means to every decoder what it means to the second implementation, or is refused by both.

The only exceptions allowed are ControlError and, of a peer's records, MessageError; their words never hold
what was received. What was decoded means the same when it is encoded again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from reference import texts
from shadowmesh.errors import ControlError, MessageError
from shadowmesh.wire import control, record
from vectors.ours import decode, written

MAX_SIZE = 10_000
VECTORS = Path(__file__).parents[1] / "tests/vectors"
ORIGINS = ("relay", "client", "claims", "peer")
# Limits of protocol section 3 that the second implementation leaves open, in the words of ours.
OUR_LIMITS = re.compile(
    r"\w+: (not printable ASCII of at most (63|255) characters|not an integer from .*|not a number of sec.*"
    r"|not base64|not a host name in lower case)"
)
# fmt: off
WORDS = [
    b'{"type":"', b'":', b'","', b"[", b"]", b"{", b"}", b"true", b"null", b"NaN", b"1e999", b"-0",
    b"\\u0041", b'"version":1', b'"held":[', b'"refused":[', b'"add":[', b'"remove":[', b'"detail":""',
    b'"ips":[',
    b'"00000000000000000000000000000000"', b"66048", b"131072", b'"10.0.0.1"', b'"fd00::1"', b'"10.0.0.0/8"',
    *(f'"{kind}"'.encode() for kind in sorted({*texts.CLIENT, *texts.RELAY, *texts.PEER})),
]
# fmt: on


def one(data: bytes) -> object:
    """Returns what each decoder made of the text."""
    found = {origin: compared(origin, data) for origin in ORIGINS}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        pass
    else:
        for origin in ("relay", "client"):
            assert decoded(origin, text)[0] == found[origin], "a str is read otherwise than its bytes"
    return found


def compared(origin: str, data: bytes) -> Any:
    """What our decoder says of the text, after asking the second implementation too."""
    value, refusal = decoded(origin, data)
    expected: Any
    try:
        expected = texts.decode(origin, data)
    except (texts.Refused, ValueError):
        assert refusal is not None or beyond(value), (origin, value)
        return value
    if refusal is None:
        assert value == expected
    else:
        assert OUR_LIMITS.fullmatch(refusal), (origin, refusal, expected)
    return value


def beyond(value: Any) -> bool:
    """Whether this is what only ours reads: a fraction of seconds, a problem without a detail."""
    kind = value and value.get("type")
    return (kind == "challenge" and value["keepalive_s"] != 20) or (kind == "problem" and not value["detail"])


def decoded(origin: str, data: bytes | str) -> tuple[Any, str | None]:
    """(the value as the second implementation writes it, None), or (None, why it is refused)."""
    refusal: ControlError | MessageError | None = None
    try:
        message = decode(origin, data)
    except (ControlError, MessageError) as error:
        refusal = error
    if refusal is not None:
        assert isinstance(refusal, MessageError) == (origin == "peer")
        assert len(refusal.what) <= 100
        assert re.fullmatch(r"[\w:;, .-]+", refusal.what, re.ASCII), refusal.what
        assert refusal.__cause__ is None
        return None, refusal.what
    if message is not None:
        again(message)
    return written(message), None


def again(message: Any) -> None:
    """Encode and decode once more."""
    match message:
        case control.Join() | control.Addresses():
            assert control.decode_from_client(control.encode(message)) == message
        case control.Claims():
            assert control.decode_claims(control.encode_claims(message)) == message
        case record.Info():
            try:
                encoded = message.encode()
            except ValueError:
                return  # what was written shorter than we would
            assert record.decode_json(encoded) == message
        case record.Probe() | record.Conflict() | record.Bye():
            assert record.decode_json(message.encode()) == message
        case _:
            assert control.decode_from_relay(control.encode(message)) == message


def seeds() -> dict[str, bytes]:
    """The texts of the vectors, accepted and refused, but for those that are long only."""
    found = {}
    for name in ("control.json", "info.json"):
        vectors = json.loads((VECTORS / name).read_text())
        for case in vectors["accepted"] + vectors["refused"]:
            text = bytes.fromhex(case["hex"]) if "hex" in case else str(case["text"]).encode()
            if len(text) < 2500 and "spaces" not in case:
                found[f"{case['from']}, {case['what']}"] = text
    return found
