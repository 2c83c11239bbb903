"""What a daemon keeps between its runs: the device seed and the keys of the peers it has met.

Both files are written whole, beside the old one, and then renamed, so that a crash leaves either.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import secrets
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from shadowmesh.errors import StartError

SEED_SIZE = 32
KEY_SIZE = 32

_SERVICE_USER = "shadowmesh"
_SEED = "device.key"
_KNOWN_PEERS = "known_peers.json"


def _service_user() -> int:
    """Whose state root may use, in a run by hand; -1 if we are not root or there is no such user."""
    if os.geteuid() == 0:
        with suppress(KeyError):
            return pwd.getpwnam(_SERVICE_USER).pw_uid
    return -1


class StateDirectory:
    """One directory, used by one daemon at a time.

    Raises StartError in words if it cannot be made, read or written, or if another daemon uses it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.warnings: list[str] = []
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mine = self._path.stat()
            self._owner = mine.st_uid
            if mine.st_mode & 0o022 or mine.st_uid not in (0, os.geteuid(), _service_user()):
                self.warnings.append(
                    f"{self._path} can be written by others, who can take this device's place: "
                    f"chown it to this daemon's user, and chmod 700 {self._path}"
                )
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.open(self._path / "lock", flags, 0o600)
        except OSError as error:
            raise self._trouble("make or open", error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StartError(
                f"state directory {self._path}: another daemon uses it; stop that one, or give this one "
                "a daemon.state_directory of its own"
            ) from None
        except OSError as error:
            os.close(self._lock)
            raise self._trouble("lock", error) from None

    def close(self) -> None:
        """Let another daemon have the directory."""
        os.close(self._lock)

    def seed(self) -> bytes:
        """The device seed, 32 random bytes, made on the first call ever."""
        path = self._path / _SEED
        try:
            text = path.read_text("ascii").strip()
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
                self.warnings.append(
                    f"{path} could be read by others, which is mended; if somebody has copied it, stop the "
                    "daemon and remove the file: this device becomes a new one to its peers"
                )
            seed = bytes.fromhex(text)
        except FileNotFoundError:
            seed = secrets.token_bytes(SEED_SIZE)
            self._write(_SEED, seed.hex() + "\n")
            return seed
        except OSError as error:
            raise self._trouble("read", error) from None
        except ValueError:
            seed = b""
        if len(seed) != SEED_SIZE:
            raise StartError(
                f"{path} is damaged: it should hold 64 hex digits; restore it, or remove it, and this device "
                "becomes a new one to its peers"
            )
        return seed

    def known_peers(self, network_id: bytes) -> dict[bytes, bytes]:
        """Overlay IP (network order) → X25519 public key, as remembered for one network."""
        try:
            peers = self._networks().get(network_id.hex(), {})
            known = {ip_address(ip).packed: bytes.fromhex(key) for ip, key in peers.items()}
        except (ValueError, AttributeError, TypeError):
            raise self._damaged() from None
        if any(len(key) != KEY_SIZE for key in known.values()):
            raise self._damaged()
        return known

    def remember_peers(self, known: Mapping[bytes, Mapping[bytes, bytes]]) -> None:
        """Keep the known peers of these networks, by network id: of all, or of none if this raises."""
        networks = self._networks()
        for network_id, peers in known.items():
            networks[network_id.hex()] = {str(ip_address(ip)): key.hex() for ip, key in peers.items()}
        self._write(_KNOWN_PEERS, json.dumps(networks, indent=1) + "\n")

    def _networks(self) -> dict[str, Any]:
        try:
            networks = json.loads((self._path / _KNOWN_PEERS).read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._trouble("read", error) from None
        except (ValueError, RecursionError):
            raise self._damaged() from None
        if not isinstance(networks, dict):
            raise self._damaged()
        return networks

    def _damaged(self) -> StartError:
        return StartError(
            f"{self._path / _KNOWN_PEERS} is damaged; restore it, or remove it, and every peer is met as for "
            "the first time"
        )

    def _write(self, name: str, text: str) -> None:
        path = self._path / name
        beside = path.with_suffix(".new")
        try:
            beside.unlink(missing_ok=True)  # of a run that was broken off
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o600)
                if os.geteuid() == 0:  # a run by hand leaves nothing that the service could not read
                    os.fchown(descriptor, self._owner, -1)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            beside.replace(path)
            directory = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            raise self._trouble("write", error) from None

    def _trouble(self, what: str, error: OSError) -> StartError:
        return StartError(
            f"cannot {what} {error.filename or self._path}: {error.strerror}; the daemon needs a directory "
            "of its own that it can write (daemon.state_directory)"
        )
