"""What the decoders of `wire` make of a JSON text, in the terms of the vectors and of `reference.texts`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from shadowmesh.wire import control, record

TYPES = {
    control.Challenge: "challenge",
    control.Join: "join",
    control.Joined: "joined",
    control.Addresses: "addresses",
    control.AddressesResult: "addresses",
    control.Gone: "gone",
    control.Pause: "pause",
    control.Resume: "resume",
    control.Problem: "problem",
    control.Drain: "drain",
    record.Info: "info",
    record.Conflict: "conflict",
    record.Bye: "bye",
}


def decode(origin: str, data: bytes | str) -> Any:
    """The message that the decoder for texts of `origin` finds; None for one of an unknown type.

    Origins: relay, client, claims, peer. Raises ControlError, for those of a peer MessageError.
    """
    match origin:
        case "relay":
            return control.decode_from_relay(data)
        case "client":
            return control.decode_from_client(data)
    assert isinstance(data, bytes)
    return control.decode_claims(data) if origin == "claims" else record.decode_json(data)


def written(message: Any) -> Any:
    """A decoded message as the files write it."""
    if message is None:
        return None
    if isinstance(message, record.Probe):
        return {"type": "probe_ack" if message.ack else "probe", "id": message.id}
    kind = TYPES.get(type(message))  # claims have none
    return ({"type": kind} if kind else {}) | _plain(asdict(message))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
