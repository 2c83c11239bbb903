"""`shadowmesh relay-keys`: the API keys of a relay, in the file that it reads.

Only `add` and `rotate` ever have a key, for the moment in which they print it; the file has its hash. It is
replaced as a whole, so a relay that reads it meanwhile finds the old one or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import json
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import click

from shadowmesh.apikey import ID_BYTES, KEYS_FILE, SECRET_BYTES, key_id, key_text
from shadowmesh.errors import StartError
from shadowmesh.ratelimit import LEAST_RATE
from shadowmesh.relay.keyfile import MAX_FILE, NAME, load, render, time_text
from shadowmesh.relay.keys import Key, Previous

GROUP = "shadowmesh"
"""That of the relay's service, which a new file gets if root makes it."""
MODE = 0o640
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_MULTIPLES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_LATEST = datetime(9999, 12, 31, tzinfo=UTC)


class _Duration(click.ParamType[int]):
    """Seconds, from `30m`, `24h`, `90d` or `4w`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch("([0-9]{1,4})([mhdw])|0", value)
        if found is None:
            self.fail("write a number and m, h, d or w, such as 24h, or 0", param, ctx)
        return int(found[1]) * _UNITS[found[2]] if found[1] else 0


class _Expiry(click.ParamType[int]):
    """A time to come in Unix seconds, from a duration or a date, which counts until its end (UTC)."""

    name = "expiry"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        now = int(time.time())
        if found := re.fullmatch("([1-9][0-9]{0,3})([mhdw])", value):
            return now + int(found[1]) * _UNITS[found[2]]
        try:
            if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
                raise ValueError
            day = datetime.fromisoformat(value).replace(tzinfo=UTC)
        except ValueError:
            self.fail("write a duration such as 90d or 12h, or a date such as 2027-01-31", param, ctx)
        end = int((min(day, _LATEST) + timedelta(days=day < _LATEST)).timestamp())
        if end <= now:
            self.fail(f"{value} is over", param, ctx)
        return end


class _Rate(click.ParamType[int]):
    """Bytes per second, from `10M` or `250k`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch("([0-9]{1,9})([kmg]?)", value.lower())
        rate = int(found[1]) * _MULTIPLES[found[2]] if found else -1
        if rate != 0 and rate < LEAST_RATE:
            words = f"write bytes per second such as 10M, or 250k, at least {LEAST_RATE}; 0 is no limit"
            self.fail(words, param, ctx)
        return rate


class _Network(click.ParamType[bytes]):
    """A network id."""

    name = "hex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            self.fail("write the 64 hex digits of `network` in a client's /status", param, ctx)
        return bytes.fromhex(value)


_file = click.option(
    "--file",
    "file",
    default=KEYS_FILE,
    show_default=True,
    metavar="FILE",
    help="The relay's auth.keys_file.",
)


@click.group("relay-keys")
def relay_keys() -> None:
    """API keys of a relay with auth.mode: api_key.

    A running relay sees each change within seconds. Run this on its host, as a user who may write the file.
    """


@relay_keys.command()
@click.argument("name")
@click.option("--expires", type=_Expiry(), metavar="90d|2027-01-31", help="Until then; default: for ever.")
@click.option("--network", type=_Network(), metavar="HEX", help="Good for this network id only.")
@click.option(
    "--max-connections",
    type=click.IntRange(0, 100_000),
    default=0,
    metavar="N",
    help="Joined connections at a time; default: no limit.",
)
@click.option(
    "--max-addresses",
    type=click.IntRange(0, 10_000_000),
    default=0,
    metavar="N",
    help="Addresses that they hold at a time, of all together; default: no limit.",
)
@click.option("--rate", type=_Rate(), default=0, metavar="10M", help="Bytes per second, of all together.")
@_file
def add(
    name: str,
    expires: int | None,
    network: bytes | None,
    max_connections: int,
    max_addresses: int,
    rate: int,
    file: str,
) -> None:
    """Make a key and print it, once."""
    if not NAME.fullmatch(name):
        raise click.BadParameter("1 to 63 letters, digits and . _ - between them", param_hint="NAME")
    with _editing(file) as (keys, shown):
        if any(key.name == name and key.revoked is None for key in keys):
            raise StartError(f"{name}: there is a key of this name; rotate or revoke it, or choose another")
        one = key_id(secrets.token_bytes(ID_BYTES))
        text = key_text(one, secrets.token_bytes(SECRET_BYTES))
        key = Key(
            one,
            name,
            _digest(text),
            int(time.time()),
            expires,
            network,
            max_connections,
            max_addresses=max_addresses,
            bytes_per_second=rate,
        )
        keys.append(key)
        shown.append(text)
    _tell_where()


@relay_keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_file
def list_keys(as_json: bool, file: str) -> None:
    """Show all keys, without what is secret of them."""
    try:
        keys = load(file)
    except FileNotFoundError:
        raise StartError(f"{file}: no such file; `relay-keys add NAME` makes it") from None
    now = time.time()
    if as_json:
        click.echo(json.dumps([_facts(key, now) for key in keys], indent=1))
        return
    rows = [("NAME", "ID", "STATE", "EXPIRES", "NETWORK", "CONNECTIONS", "ADDRESSES", "BYTES/S")]
    for key in keys:
        facts = _facts(key, now)
        network = facts["network"]
        rows.append(
            (
                key.name,
                key.id,
                facts["state"] + (f" until {before}" if (before := facts["previous_expires"]) else ""),
                _expiry(key.expires),
                f"{network[:16]}..." if network else "any",
                str(key.max_connections or "any"),
                str(key.max_addresses or "any"),
                str(key.bytes_per_second or "any"),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@relay_keys.command()
@click.argument("name", metavar="NAME|ID")
@_file
def revoke(name: str, file: str) -> None:
    """End a key for good; its connections end within seconds."""
    with _editing(file) as (keys, _):
        i = _find(keys, name, file)
        keys[i] = replace(keys[i], revoked=int(time.time()))
    click.echo(f"revoked {keys[i].name} ({keys[i].id})", err=True)


@relay_keys.command()
@click.argument("name", metavar="NAME|ID")
@click.option(
    "--grace",
    type=_Duration(),
    default="24h",
    show_default=True,
    metavar="24h",
    help="How long the present key stays good.",
)
@_file
def rotate(name: str, grace: int, file: str) -> None:
    """Give a key a new secret and print it, once.

    Name, expiry and bounds stay. An earlier key that is still in its own grace ends now.
    """
    now = int(time.time())
    with _editing(file) as (keys, shown):
        i = _find(keys, name, file)
        key = keys[i]
        if key.expires is not None and key.expires <= now:
            raise StartError(f"{key.name} expired on {time_text(key.expires)}; revoke it and add a new one")
        text = key_text(key.id, secrets.token_bytes(SECRET_BYTES))
        # Also without a grace: who still has it is told that it was replaced, and tries no keys out.
        keys[i] = replace(key, digest=_digest(text), previous=Previous(key.digest, now + grace))
        shown.append(text)
    _tell_where()
    ends = f"is good until {time_text(now + grace)}" if grace else "is not good any more"
    click.echo(f"The key before {ends}.", err=True)


def _show(keys: list[str]) -> None:
    for text in keys:
        try:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "closed")
            click.echo(text)
        except OSError as error:
            words = f"the key cannot be shown, standard output: {error.strerror}; nothing is changed"
            raise StartError(words) from None


def _tell_where() -> None:
    click.echo("It is shown this once. On the devices: relay.api_key in client-config.yaml", err=True)


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def _find(keys: list[Key], name: str, file: str) -> int:
    """The key that has this name and is not revoked, else the one with this id."""
    for i, key in enumerate(keys):
        if key.name == name and key.revoked is None:
            return i
    for i, key in enumerate(keys):
        if name == key.id and key.revoked is None:
            return i
    if revoked := [key for key in keys if name in (key.id, key.name)]:
        raise StartError(f"{name} was revoked on {time_text(revoked[-1].revoked or 0)}")
    raise StartError(f"{file} has no key {name}; `relay-keys list` shows all")


def _expiry(seconds: int | None) -> str:
    """For people; a day that counts until its end ends as the next one begins."""
    if seconds is None:
        return "never"
    return f"end of {time_text(seconds - 1)[:10]}" if seconds % 86_400 == 0 else time_text(seconds)


def _facts(key: Key, now: float) -> dict[str, Any]:
    """What may be shown of a key."""

    def at(seconds: int | None) -> str | None:
        return None if seconds is None else time_text(seconds)

    previous = key.previous if key.previous and key.previous.expires > now else None
    if key.revoked is not None:
        previous = None
        state = "revoked"
    elif key.expires is not None and key.expires <= now:
        state = "expired"
    else:
        state = "rotating" if previous else "valid"
    return {
        "name": key.name,
        "id": key.id,
        "state": state,
        "created": at(key.created),
        "expires": at(key.expires),
        "revoked": at(key.revoked),
        "previous_expires": at(previous.expires) if previous else None,
        "network": key.network.hex() if key.network else None,
        "max_connections": key.max_connections,
        "max_addresses": key.max_addresses,
        "bytes_per_second": key.bytes_per_second,
    }


@contextmanager
def _editing(file: str) -> Iterator[tuple[list[Key], list[str]]]:
    """The keys of a file, to be changed in place and written back; one program at a time.

    New keys go to the list beside it: they are printed before they count, so that none is lost.
    Raises StartError in words; a missing file is an empty one.
    """
    path = os.path.realpath(file)  # what a symbolic link leads to is replaced, not the link
    folder = os.path.dirname(path)
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        remedy = f"; make it with: mkdir -p {shlex.quote(folder)}" if missing else ""
        raise StartError(f"{folder}: {error.strerror}{remedy}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            keys = load(path)
        except FileNotFoundError:
            keys = []
        shown: list[str] = []
        yield keys, shown
        content = render(keys)
        if len(content) > MAX_FILE:
            raise StartError(f"{path}: full; take revoked keys out of it")
        _replace(path, content, shown)
        with suppress(OSError):
            os.fsync(lock)
    except OSError as error:
        raise StartError(f"cannot write {path}: {error.strerror}; nothing is changed") from None
    finally:
        os.close(lock)


def _replace(path: str, content: bytes, shown: list[str]) -> None:
    """Write a file beside `path`, with its owner and mode; it takes its place once `shown` is printed."""
    beside = f"{path}.{secrets.token_hex(4)}.new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            try:
                old = os.stat(path)
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, old.st_mode & 0o7777)
            except FileNotFoundError:
                if os.geteuid() == 0:
                    with suppress(KeyError):
                        os.fchown(descriptor, -1, grp.getgrnam(GROUP).gr_gid)
                os.fchmod(descriptor, MODE)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        _show(shown)
        os.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
