"""Why there is no connection to the relay, in words; `daemon.diagnosis` knows them again."""

from __future__ import annotations

from shadowmesh.wire import control


def unauthorized(reason: str, *, asked: bool) -> str:
    """What HTTP 401 means for us; reason: with the relay's own words behind the colon."""
    if asked:
        return "the relay asks for an API key: write it as relay.api_key"
    _, _, why = reason.partition(": ")
    return f"the relay refuses our API key: {why or reason}"


def another_version(relays: int) -> str:
    """A relay that speaks this version of the protocol, which is not ours."""
    older = "this client" if relays > control.VERSION else "the relay"
    return (
        f"the relay speaks version {relays} of the protocol, this client {control.VERSION}: upgrade {older}"
    )


def in_words(code: int | None, reason: str) -> str:
    """What a close code, None without a close frame, and the reason behind it mean for us."""
    words = {
        None: "the connection was lost",
        control.CLOSE_REPLACED: "duplicate_device: another process uses this device's key",
        control.CLOSE_JOIN_REFUSED: "the relay refused the join",
        control.CLOSE_JOIN_TIMEOUT: "the relay gave up waiting for the join",
        control.CLOSE_WITHDRAWN: "the relay withdrew our access",
        1012: "the relay stops or restarts",
        1013: "the relay has no place for us",
    }.get(code, f"the relay closed the connection ({code})")
    return (
        f"{words}: {control.printable(reason, 123)}" if reason not in ("", words) and code != 1012 else words
    )
