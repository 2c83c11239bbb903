"""`shadowmesh status | peers | ping | watch | up | down | trust | reload`: the daemon of this host.

Exit status: 0 well, 1 trouble, 2 wrong usage.
"""

from __future__ import annotations

import json
import math
import sys
import time
from ipaddress import ip_address
from typing import Any

import click

from shadowmesh.cli.local import ApiError, LocalDaemon, connection
from shadowmesh.errors import StartError

PING_EVERY = 1.0
PING_SECONDS = 10.0  # for one probe, of which the daemon gives up after two
UP_SECONDS = 10.0


def _print(facts: Any, *, lines: bool = False) -> None:
    click.echo(json.dumps(facts, indent=None if lines else 2))


@click.command()
@connection
def status(as_json: bool, api: str | None, token_file: str | None) -> None:
    """Show how this device and its relays are, and what is wrong.

    Ends with status 1 without a connection to a relay, and when something is wrong.
    """
    facts = LocalDaemon(api, token_file).status()
    if as_json:
        _print(facts)
    else:
        from shadowmesh.cli import tables

        tables.console().print(tables.status(facts))
    if facts["status"] != "connected" or facts["diagnosis"]:
        raise SystemExit(1)


@click.command()
@connection
def peers(as_json: bool, api: str | None, token_file: str | None) -> None:
    """Show the other devices that this one has a session with."""
    facts = LocalDaemon(api, token_file).status()
    if as_json:
        _print(facts["peers"])
        return
    from shadowmesh.cli import tables

    tables.console().print(tables.peers(facts))


@click.command()
@click.argument("peer", metavar="NAME|IP")
@click.option("-c", "--count", type=click.IntRange(1), default=4, show_default=True, help="How often.")
@connection
def ping(peer: str, count: int, as_json: bool, api: str | None, token_file: str | None) -> None:
    """Measure the way to a peer and back, through the tunnel.

    By probes of the session, not ICMP: it works where a firewall drops pings. Ends with status 1 if none was
    answered.
    """
    if not peer.strip():
        raise click.BadParameter("write the name or the overlay IP of a peer", param_hint="NAME|IP")
    daemon = LocalDaemon(api, token_file)
    took: list[float | None] = []
    try:
        for number in range(count):
            if number:
                time.sleep(PING_EVERY)
            answer = daemon.post("/ping", PING_SECONDS, peer=peer, count=1)
            (rtt,) = answer["rtt_ms"]
            took.append(rtt)
            if as_json:
                _print(
                    {"rtt_ms": rtt, **{key: answer[key] for key in ("name", "ips", "waiting_for")}},
                    lines=True,
                )
            elif rtt is None:
                hint = "" if number else _spelling(peer, answer)
                click.echo(f"{peer}: no answer; waited for {answer['waiting_for']}{hint}")
            else:
                ips = ", ".join(answer["ips"])
                who = " ".join(filter(None, (answer["name"], ips and f"({ips})")))
                click.echo(f"{who}: {rtt:.1f} ms")
    except KeyboardInterrupt:
        pass
    answered = [rtt for rtt in took if rtt is not None]
    if not as_json and took:
        lost = 100 * (len(took) - len(answered)) / len(took)
        counts = f"{_counted(len(took), 'probe')}, {_counted(len(answered), 'answer')}"
        click.echo(f"{counts}, {lost:.0f} % lost", nl=not answered)
        if answered:
            mean = sum(answered) / len(answered)
            click.echo(f"; least {min(answered):.1f}, mean {mean:.1f}, most {max(answered):.1f} ms")
    if not answered:
        raise SystemExit(1)


def _spelling(peer: str, answer: dict[str, Any]) -> str:
    """What there is to add where nobody of a name was found: a wrong name looks like an absent peer."""
    try:
        ip_address(peer)
    except ValueError:
        if not answer["name"] and answer["waiting_for"].startswith("a session"):
            return f" Nobody is known as {peer}: is the name spelt right?"
    return ""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@click.command()
@click.option(
    "-n",
    "--interval",
    type=click.FloatRange(0.2, 86400),
    default=2.0,
    show_default=True,
    help="Seconds in between.",
)
@click.option("--times", type=click.IntRange(1), help="End after so many; default: Ctrl-C.")
@connection
def watch(interval: float, times: int | None, as_json: bool, api: str | None, token_file: str | None) -> None:
    """Show status and peers again and again.

    With --json one line each time. A daemon that restarts meanwhile is waited for.
    """
    if math.isnan(interval):
        raise click.BadParameter("nan is no number of seconds", param_hint="--interval")
    daemon = LocalDaemon(api, token_file)
    shown = 0
    try:
        if as_json:
            while times is None or shown < times:
                if shown:
                    time.sleep(interval)
                try:
                    _print(daemon.status(), lines=True)
                except ApiError as error:
                    _print({"error": str(error)}, lines=True)
                sys.stdout.flush()
                shown += 1
            return
        from rich.live import Live

        from shadowmesh.cli import tables

        console = tables.console()
        with Live(_page(daemon), console=console, auto_refresh=False) as live:
            while times is None or (shown := shown + 1) < times:
                time.sleep(interval)
                live.update(_page(daemon), refresh=True)
        if not console.is_terminal:
            click.echo()  # rich ends the last line on a terminal only
    except KeyboardInterrupt:
        pass


def _page(daemon: LocalDaemon) -> Any:
    from rich.console import Group
    from rich.text import Text

    from shadowmesh.cli import tables

    try:
        facts = daemon.status()
    except ApiError as error:
        return Text(str(error), "red")
    return Group(tables.status(facts, brief=True), Text(), tables.peers(facts, brief=True))


@click.command()
@connection
def up(as_json: bool, api: str | None, token_file: str | None) -> None:
    """Connect to the relay again after `down`.

    Waits up to ten seconds for the connection; ends with status 1 if there is none by then.
    """
    daemon = LocalDaemon(api, token_file)
    facts = daemon.post("/connect")
    deadline = time.monotonic() + UP_SECONDS
    while facts["status"] != "connected" and time.monotonic() < deadline:
        time.sleep(0.1)
        facts = {key: value for key, value in daemon.status().items() if key in facts}
    if as_json:
        _print(facts)
    elif facts["status"] == "connected":
        click.echo("connected")
    if facts["status"] != "connected":
        raise StartError(
            f"not connected yet: {facts['reason'] or facts['status']}; the daemon goes on trying"
        )


@click.command()
@connection
def down(as_json: bool, api: str | None, token_file: str | None) -> None:
    """Leave the relay, until `up` or a restart of the daemon.

    Peers are told. The device stays, and what is sent to it is refused at once.
    """
    facts = LocalDaemon(api, token_file).post("/disconnect")
    if as_json:
        _print(facts)
    else:
        click.echo("down; `shadowmesh up` connects again")


@click.command()
@click.argument("ip")
@click.option(
    "--fingerprint", metavar="TEXT", help="Only if it is this one, as that device's `status` shows it."
)
@connection
def trust(ip: str, fingerprint: str | None, as_json: bool, api: str | None, token_file: str | None) -> None:
    """Trust the new key that answers for an overlay IP.

    It is the key that was refused last; if none was, the old one is forgotten and the next one is taken.
    """
    daemon = LocalDaemon(api, token_file)
    facts = (
        daemon.post("/trust", ip=ip, fingerprint=fingerprint) if fingerprint else daemon.post("/trust", ip=ip)
    )
    if as_json:
        _print(facts)
    elif facts["fingerprint"]:
        already = facts["fingerprint"] == facts["before"]
        words = "was trusted already" if already else "is trusted now"
        click.echo(f"{facts['ip']}: {facts['fingerprint']} {words}")
    else:
        click.echo(f"{facts['ip']}: the next device that answers is trusted")


@click.command()
@connection
def reload(as_json: bool, api: str | None, token_file: str | None) -> None:
    """Have the daemon read its configuration again.

    Ends with status 1 if a changed key needs a restart.
    """
    facts = LocalDaemon(api, token_file).post("/reload")
    if as_json:
        _print(facts)
    else:
        nothing = "nothing" if facts["refused"] else "nothing has changed"
        click.echo(f"applied: {', '.join(facts['applied']) or nothing}")
        for line in (*facts["warnings"], *facts["refused"]):
            click.echo(line, err=True)
    if facts["refused"]:
        raise SystemExit(1)
