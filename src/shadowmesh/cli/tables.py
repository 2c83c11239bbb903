"""The facts of /status for people: what `shadowmesh status`, `peers` and `watch` show."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast
from urllib.parse import urlsplit

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

SHOWN_LOSSES = 3
_UNBOUND = 100_000  # columns
_PIPED_WIDTH = 400  # nothing is cut or folded for another program
_LASTING = {"offload", "fingerprint", "network", "next fingerprint", "next network", "version"}
# What goes first where a terminal is too narrow for all columns.
_SPARE_OF_RELAYS = ("REFUSED", "RECONNECTS", "REGION", "SERVER")
_SPARE_OF_PEERS = ("AGENT", "OFFLOAD", "REKEYS", "IDENTITY", "HANDSHAKE", "PATH", "LOSS", "OUT", "IN")
_GOOD, _BAD, _QUIET = "green", "red", "dim"
_STYLES = {"connected": _GOOD, "down": "yellow", "standby": _QUIET}


def console() -> Console:
    """Colours and the terminal's width on a terminal; else neither, and no spaces at the ends of lines."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=_PIPED_WIDTH, file=cast(IO[str], _Trimming()))


class _Trimming:
    """Standard output without the spaces that fill the columns of a table up."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def status(facts: dict[str, Any], *, brief: bool = False) -> RenderableType:
    """Everything but the table of peers; brief: trouble first, and not what stays as it is."""
    state = Text(facts["status"], _STYLES.get(facts["status"], _BAD))
    refused = list(dict.fromkeys(name for relay in facts["relays"] for name in relay["refused"]))
    if facts["status"] == "connected" and refused:
        verb = "belongs" if len(refused) == 1 else "belong"
        state.append(f", but {', '.join(refused)} {verb} to another device", "default")
    elif facts["reason"]:
        state.append(f": {facts['reason']}", "default")
    peers = facts["peers"]
    there = sum(peer["connected"] for peer in peers)
    rows: list[tuple[str, str | Text]] = [
        ("state", state),
        ("device", f"{facts['name']}, {', '.join(facts['ips'])} on {facts['device']}, MTU {facts['mtu']}"),
        ("offload", ", ".join(facts["offload"]) or "none"),
        ("fingerprint", facts["fingerprint"]),
        ("network", facts["network"]),
        *((f"next {name}", text) for name, text in facts.get("next", {}).items()),
        ("version", f"{facts['version']}, up {duration(facts['uptime'])}"),
        ("peers", f"{there} connected" + (f", {len(peers) - there} not" if there < len(peers) else "")),
        ("packets", f"{facts['packets_in']} from peers, {facts['packets_out']} to peers"),
    ]
    not_taken = sum(relay["dropped"] for relay in facts["relays"])
    drops = sorted(facts["drops"].items(), key=lambda each: -each[1])
    if lost := [*drops, *([("not taken by a relay", not_taken)] if not_taken else ())]:
        rows.append(("drops", ", ".join(f"{count} {reason}" for reason, count in lost)))
    if brief:
        rows = [row for row in rows if row[0] not in _LASTING]
    parts: list[RenderableType] = [_pairs(rows), Text(), _relays(facts["relays"], brief)]
    if losses := list(_losses(facts["relays"])):
        parts += [Text(), _table(("WHEN", "RELAY", "WHY IT WAS LOST"), losses)]
    if facts["diagnosis"]:
        trouble = _pairs((each["code"], Text(each["text"], _BAD)) for each in facts["diagnosis"])
        parts = [trouble, Text(), *parts] if brief else [*parts, Text(), trouble]
    return Group(*parts)


def peers(facts: dict[str, Any], *, brief: bool = False) -> RenderableType:
    """The table of peers; brief: with the columns for which there is room."""
    if not facts["peers"]:
        return Text("no peers: a session is made with the first packet to one (`shadowmesh ping NAME`)")
    columns = (
        *("NAME", "IPS", "STATE", "PATH", "RTT", "LOSS", "IN", "OUT", "HANDSHAKE", "REKEYS", "OFFLOAD"),
        *("IDENTITY", "AGENT"),
    )
    rows = []
    for peer in sorted(facts["peers"], key=lambda each: (each["name"], each["ips"])):
        state = "connected" if peer["connected"] else f"silent for {duration(peer['heard'])}"
        rows.append(
            (
                peer["name"],
                ", ".join(peer["ips"]),
                Text(state, _STYLES.get(state, _BAD)),
                peer["path"],
                milliseconds(peer["rtt_ms"]),
                "-" if peer["loss_percent"] is None else f"{peer['loss_percent']:g} %",
                size(peer["bytes_in"]),
                size(peer["bytes_out"]),
                f"{duration(peer['last_handshake'])} ago",
                str(peer["rekeys"]),
                "yes" if peer["offload"] else "-",
                Text(peer["identity"], _BAD if peer["identity"] == "changed" else "default"),
                peer["agent"],
            )
        )
    return _Fitting(columns, rows, _SPARE_OF_PEERS if brief else ())


def duration(seconds: float) -> str:
    """`4 s`, `5 min`, `26 h`, `12 d`: one unit, rounded down."""
    for name, length in (("d", 2 * 86400), ("h", 2 * 3600), ("min", 120)):
        if seconds >= length:
            return f"{int(seconds // {'d': 86400, 'h': 3600, 'min': 60}[name])} {name}"
    return f"{int(seconds)} s"


def size(number: float) -> str:
    """Bytes: `812 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def milliseconds(value: float | None) -> str:
    """`12.3 ms`, `-` for what is not known."""
    return "-" if value is None else f"{value:.1f} ms"


def _relays(relays: list[dict[str, Any]], brief: bool) -> RenderableType:
    rows = []
    for relay, name in zip(relays, _names(relays), strict=True):
        rows.append(
            (
                name or (relay["server"] if brief else "-"),
                relay["region"] or "-",
                Text(relay["state"], _STYLES.get(relay["state"], _BAD)),
                duration(relay["seconds"]),
                milliseconds(relay["rtt_ms"]),
                str(relay["reconnects"]),
                ", ".join(relay["refused"]) or "-",
                " ".join(filter(None, (relay["server"], relay["address"]))),
            )
        )
    columns = ("RELAY", "REGION", "STATE", "FOR", "RTT", "RECONNECTS", "REFUSED", "SERVER")
    return _Fitting(columns, rows, _SPARE_OF_RELAYS if brief else ())


def _names(relays: list[dict[str, Any]]) -> list[str]:
    """What each is called: with its address where another relay has the same name, as in `peers`."""
    places = {(relay["name"], relay["server"], relay["address"]) for relay in relays}
    names, urls = ([place[i] for place in places] for i in (0, 1))
    told = []
    for relay in relays:
        name, url = relay["name"], relay["server"]
        if name and names.count(name) > 1:
            name += f" ({(urls.count(url) > 1 and relay['address']) or urlsplit(url).netloc})"
        told.append(name)
    return told


def _losses(relays: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """The newest losses of all relays, one that two connections to a relay have told of once."""
    losses = {
        (round(each["seconds_ago"]), name or relay["server"], each["reason"]): None
        for relay, name in zip(relays, _names(relays), strict=True)
        for each in relay["history"]
    }
    for seconds, name, reason in sorted(losses)[:SHOWN_LOSSES]:
        yield f"{duration(seconds)} ago", name, reason


class _Fitting:
    """A table, or where the terminal is too narrow for it a block of lines for each row.

    spare: columns that the table can do without, the least important first.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[tuple[str | Text, ...]], spare: Sequence[str] = ()
    ) -> None:
        self._columns = columns
        self._rows = rows
        self._spare = spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        unbound = options.update(max_width=_UNBOUND)
        for left_out in range(len(self._spare) + 1):
            kept = [i for i, name in enumerate(self._columns) if name not in self._spare[:left_out]]
            rows = [tuple(row[i] for i in kept) for row in self._rows]
            table = _table([self._columns[i] for i in kept], rows)
            if Measurement.get(console, unbound, table).maximum <= options.max_width:
                yield table
                return
        for number, row in enumerate(self._rows):
            if number:
                yield Text()
            yield _pairs(zip(self._columns, row, strict=True))


def _table(columns: Iterable[str], rows: Iterable[tuple[str | Text, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def _pairs(rows: Iterable[tuple[str, str | Text]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value) if isinstance(value, str) else value)
    return table
