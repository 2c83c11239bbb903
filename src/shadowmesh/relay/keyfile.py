"""The file of a relay's API keys: JSON that `shadowmesh relay-keys` writes and the relay reads.

    {"version": 1, "keys": [{"id", "name", "sha256", "created", "expires", "network", "max_connections",
                             "max_addresses", "bytes_per_second", "revoked",
                             "previous": {"sha256", "expires"}}]}

Every member is there; `expires`, `network`, `revoked` and `previous` may be null. One that is not known is an
error: it may be a restriction.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from shadowmesh.apikey import KEY_ID, KEYS_FILE
from shadowmesh.errors import ControlError, StartError
from shadowmesh.ratelimit import LEAST_RATE
from shadowmesh.relay.keys import Key, Keys, Previous
from shadowmesh.wire.control import strict_json

VERSION = 1
MAX_FILE = 4 << 20
"""Bytes: some ten thousand keys."""
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""Names of keys: short, and not taken for an option or a path."""
_MEMBERS = (
    *("id", "name", "sha256", "created", "expires", "network", "max_connections", "max_addresses"),
    *("bytes_per_second", "revoked", "previous"),
)
_HEX32 = re.compile("[0-9a-f]{64}")
_TIME = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class KeysFile:
    """`auth.keys_file`, loaded. To make one and `reload` raise StartError in words."""

    keys: Keys

    def __init__(self, path: str) -> None:
        self.path = path
        self.reload()

    def changed(self) -> bool:
        """Whether the file is another one than at the latest attempt to load it, be it that it failed."""
        return _identity(self.path) != self._seen

    def reload(self) -> None:
        """Load the file; when it raises, what was loaded before stays."""
        self._seen = _identity(self.path)  # before reading, so that a change meanwhile is one
        try:
            self.keys = Keys(load(self.path))
        except FileNotFoundError:
            elsewhere = "" if self.path == KEYS_FILE else f" --file {self.path}"
            raise StartError(
                f"auth.keys_file {self.path}: no such file; make it and its first key with: "
                f"shadowmesh relay-keys add NAME{elsewhere}"
            ) from None
        except StartError as error:
            raise StartError(f"auth.keys_file {error}") from None


def load(path: str) -> list[Key]:
    """The keys of a file. Raises StartError in words, FileNotFoundError if there is none."""
    try:
        # Without O_NONBLOCK a named pipe would keep us waiting.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise StartError(f"{path}: not a regular file")
            if mode & stat.S_IWOTH:
                raise StartError(
                    f"{path}: everybody on this host may write it; mend it with: chmod o-w {path}"
                )
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise
    except PermissionError:
        raise StartError(
            f"{path}: no permission to read it, which the relay's user needs: chgrp shadowmesh {path}"
        ) from None
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    return parse(content, path)


def parse(content: bytes, name: str) -> list[Key]:
    """The keys in a file's content; `name` stands in messages. Raises StartError in words."""
    if len(content) > MAX_FILE:
        raise StartError(f"{name}: larger than {MAX_FILE >> 20} MiB")
    try:
        document = strict_json(content)
    except ControlError as error:
        raise StartError(f"{name}: {error}; `shadowmesh relay-keys` writes this file") from None
    if (type(version := document.get("version")), version) != (int, VERSION):
        raise StartError(f"{name}: version: this program knows {VERSION} only")
    entries = document.get("keys")
    if len(document) != 2 or not isinstance(entries, list):
        raise StartError(f"{name}: holds something else than version and keys, a list")
    keys = []
    for i, entry in enumerate(entries):
        try:
            keys.append(_key(entry))
        except ValueError as error:
            raise StartError(f"{name}: keys[{i}]: {error}") from None
    for names in (Counter(key.id for key in keys), Counter(key.name for key in keys if key.revoked is None)):
        for each, count in names.items():
            if count > 1:
                raise StartError(f"{name}: {count} keys are called {each}")
    return keys


def render(keys: Iterable[Key]) -> bytes:
    """The content of a file with these keys."""
    document = {"version": VERSION, "keys": [_entry(key) for key in keys]}
    return (json.dumps(document, indent=1) + "\n").encode()


def time_text(seconds: int) -> str:
    """Unix seconds as the file has them: `2027-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _entry(key: Key) -> dict[str, object]:
    previous = key.previous
    return {
        "id": key.id,
        "name": key.name,
        "sha256": key.digest.hex(),
        "created": time_text(key.created),
        "expires": None if key.expires is None else time_text(key.expires),
        "network": None if key.network is None else key.network.hex(),
        "max_connections": key.max_connections,
        "max_addresses": key.max_addresses,
        "bytes_per_second": key.bytes_per_second,
        "revoked": None if key.revoked is None else time_text(key.revoked),
        "previous": previous and {"sha256": previous.digest.hex(), "expires": time_text(previous.expires)},
    }


def _key(entry: object) -> Key:
    """One key; raises ValueError in words, without a value of the file in them."""
    members = _members(entry, *_MEMBERS)
    expires, network, revoked, previous = (
        members[name] for name in ("expires", "network", "revoked", "previous")
    )
    return Key(
        id=_text("id", members["id"], KEY_ID),
        name=_text("name", members["name"], NAME),
        digest=_hex32("sha256", members["sha256"]),
        created=_time("created", members["created"]),
        expires=None if expires is None else _time("expires", expires),
        network=None if network is None else _hex32("network", network),
        max_connections=_number("max_connections", members["max_connections"]),
        max_addresses=_number("max_addresses", members["max_addresses"]),
        bytes_per_second=_number("bytes_per_second", members["bytes_per_second"], LEAST_RATE),
        revoked=None if revoked is None else _time("revoked", revoked),
        previous=None if previous is None else _previous(previous),
    )


def _previous(entry: object) -> Previous:
    members = _members(entry, "sha256", "expires")
    return Previous(_hex32("sha256", members["sha256"]), _time("expires", members["expires"]))


def _members(entry: object, *names: str) -> dict[str, object]:
    if not isinstance(entry, dict) or entry.keys() != set(names):
        raise ValueError(f"must have {', '.join(names)}, and nothing else")
    return entry


def _text(name: str, value: object, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError(f"{name}: not of the form {form.pattern}")
    return value


def _hex32(name: str, value: object) -> bytes:
    return bytes.fromhex(_text(name, value, _HEX32))


def _number(name: str, value: object, least: int = 1) -> int:
    if type(value) is not int or not (value == 0 or least <= value < 1 << 53):
        raise ValueError(f"{name}: neither 0 nor a whole number from {least} on")
    return value


def _time(name: str, value: object) -> int:
    try:
        return int(datetime.fromisoformat(_text(name, value, _TIME)).timestamp())
    except ValueError:
        raise ValueError(f"{name}: not a time such as 2027-01-31T12:00:00Z") from None


def _identity(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
