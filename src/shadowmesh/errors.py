"""One exception tree. Who broke the rule is in the type, the facts are fields, `str()` says them in words."""

from __future__ import annotations


class ShadowMeshError(Exception):
    """Base of every error that this package raises on purpose."""


class LocalProtocolError(ShadowMeshError):
    """Our own caller asked for something the protocol does not allow: a bug on this side."""


class RemoteProtocolError(ShadowMeshError):
    """Bytes from the other side break the protocol.

    `what` says which rule, in words for a log line; never holds the bytes themselves.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class FrameError(RemoteProtocolError):
    """A relay data frame is malformed."""


class ControlError(RemoteProtocolError):
    """A control message (JSON) is malformed."""


class MessageError(RemoteProtocolError):
    """A peer message or one of its records is malformed."""


class OffloadError(RemoteProtocolError):
    """A virtio_net_hdr or the packet behind it is not one that may reach the kernel."""


class HandshakeError(RemoteProtocolError):
    """A Noise message does not verify or an operation of the handshake failed."""


class SealedError(RemoteProtocolError):
    """A sealed message is a forgery, a replay, or comes after its session's end."""


class JoinError(RemoteProtocolError):
    """A relay join does not verify: signature, key, claims or relay name."""


class InvitationError(RemoteProtocolError):
    """An invitation cannot be read, or cannot be made of these values."""


class ConfigError(ShadowMeshError):
    """A configuration file cannot be used; `problems` has one finished line for each mistake in it.

    log_format: what it says about the log, as far as that could be read.
    """

    def __init__(self, problems: list[str], log_format: str = "auto") -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.log_format = log_format


class TunError(ShadowMeshError):
    """The TUN device cannot be made or configured; the text says what to do about it."""


class StartError(ShadowMeshError):
    """A program cannot start (port taken, no permission, unwritable directory); the text says what to do."""


class RequestError(ShadowMeshError):
    """The operator asked a running program for something that it cannot do; the text says why."""
