"""`shadowmesh demo`: the real programs in three network namespaces, and what their relay got to see of it.

Every line of the report with a tick was measured in this run; the exit status is 0 only when all were true.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import secrets
import sys
import time
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.markup import escape

from shadowmesh import __version__
from shadowmesh.crypto.keys import NetworkKeys
from shadowmesh.testing import guide, netlab
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError, Program
from shadowmesh.wire.frame import DATA, HEADER_SIZE
from shadowmesh.wire.message import SEALED

LAPTOP, DESKTOP = "demo-laptop", "demo-desktop"
LAPTOP_IP, DESKTOP_IP = "10.10.10.1", "10.10.10.2"
RECORD = 64
TOOLS = {**netlab.TOOLS, "curl": "curl", "iperf3": "iperf3"}


@click.command()
@click.option("--size", default=32, show_default=True, type=click.IntRange(1, 1024), help="MiB of the file.")
@click.option("--seconds", default=3, show_default=True, type=click.IntRange(1, 60), help="Of iperf3.")
@click.option("--keep", type=click.Path(path_type=Path), help="Leave logs and captures in this directory.")
def demo(size: int, seconds: int, keep: Path | None) -> None:
    """Show two hosts and a relay at work.

    Makes three network namespaces on this machine, in which the clients can reach each other only through the
    relay's programs; starts the real programs on the deployment guide's configuration files with a fresh key;
    moves traffic; reports it beside what the relay saw. Changes nothing outside the namespaces and removes
    them.
    """
    as_user = not netlab.privileged()
    if obstacles := _obstacles(as_user):
        for obstacle in obstacles:
            click.echo(f"demo: {obstacle}", err=True)
        raise SystemExit(1)
    if as_user:
        directory = ["--keep", str(keep)] if keep else []
        _again_in_a_user_namespace("--size", str(size), "--seconds", str(seconds), *directory)
    console = Console(highlight=False, soft_wrap=True)
    try:
        with Lab("laptop", "desktop", keep=keep) as lab:
            report = Report(console)
            Demo(lab, report).run(size << 20, seconds)
    except LabError as error:
        console.print(f"[red]✗[/] {escape(str(error))}")
        raise SystemExit(1) from None
    raise SystemExit(1 if report.failed else 0)


class Report:
    """Prints claims as they are proved or not; `failed` says whether any was not."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.failed = False

    def headline(self, text: str) -> None:
        self._console.print(f"\n[bold]{escape(text)}[/]")

    def claim(self, what: str, true: bool, text: str) -> None:
        self.failed |= not true
        mark = "[green]✓[/]" if true else "[red]✗[/]"
        self._console.print(f"  {mark} {what:<18} {escape(text)}")

    def quote(self, text: str) -> None:
        for line in text.splitlines():
            self._console.print(f"      [dim]{escape(line)}[/]")


class Demo:
    """One run: steps in the order of the report."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab = lab
        self.report = report
        self.laptop, self.desktop = lab["laptop"], lab["desktop"]
        self.key = secrets.token_bytes(32)
        self.mark = secrets.token_hex(16).encode()

    def run(self, size: int, seconds: int) -> None:
        report = self.report
        path = f"{LAPTOP} {LAPTOP_IP} ── relay {netlab.RELAY_IP4} ── {DESKTOP} {DESKTOP_IP}"
        report.headline(f"ShadowMesh {__version__}: {path}")
        self._no_way_past_the_relay()
        at_relay = self.lab.relay.capture()
        relay = self._start()
        at_laptop = self.laptop.capture("shadowmesh0")
        self._ping()
        self._file(size)
        plain = at_laptop.finish(DESKTOP_IP)
        sealed = at_relay.finish(netlab.RELAY_IP4)
        self._iperf3(seconds)
        report.headline("What the relay saw")
        self._relay_numbers()
        self._frames(sealed)
        self._secrets(sealed, plain, relay)

    def _no_way_past_the_relay(self) -> None:
        other = self.desktop.ip4
        ping = self.laptop.run("ping", "-n", "-c1", "-W0.5", other, check=False)
        answered = "bytes from" in ping.stdout
        self.report.claim(
            "no other way", not answered, f"{other}, the other host's own address, is unreachable"
        )

    def _start(self) -> Program:
        began = time.monotonic()
        relay = self.lab.start_relay()
        for name, ip, peer_id in (("laptop", LAPTOP_IP, LAPTOP), ("desktop", DESKTOP_IP, DESKTOP)):
            self.lab.start_client(name, f"{ip}/24", self.key.hex(), peer_id=peer_id, wait=False)
        self.lab.wait_connected("laptop")
        self.lab.wait_connected("desktop")
        self.laptop.wait_for_ping(DESKTOP_IP)
        took = time.monotonic() - began
        self.report.claim("found each other", True, f"{took:.1f} s after the start of the relay")
        return relay

    def _ping(self) -> None:
        output = self.laptop.run("ping", "-n", "-c20", "-i0.02", "-W1", DESKTOP_IP, check=False).stdout
        received = re.search(r"(\d+) received", output)
        average = re.search(r"= [\d.]+/([\d.]+)/", output)
        count = int(received[1]) if received else 0
        time_ms = f", {average[1]} ms on average" if average else ""
        self.report.claim("ping", count == 20, f"{count} of 20 answered{time_ms}")

    def _file(self, size: int) -> None:
        served, fetched = self.lab.directory / "served", self.lab.directory / "fetched"
        served.mkdir()
        self._write_marked(served / "file", size)
        self.desktop.start(
            sys.executable, "-m", "http.server", "--bind", DESKTOP_IP, "--directory", str(served), "8000"
        ).wait_for_text("Serving HTTP")
        url = f"http://{DESKTOP_IP}:8000/file"
        began = time.monotonic()
        self.laptop.run(
            "curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "60", "-o", str(fetched), url
        )
        took = time.monotonic() - began
        sums = [_sha256(served / "file"), _sha256(fetched)]
        text = f"{size >> 20} MiB in {took:.2f} s, SHA-256 {sums[1][:16]}… "
        equal = sums[0] == sums[1]
        self.report.claim(
            "file by HTTP", equal, text + ("on both sides" if equal else f"is not {sums[0][:16]}…")
        )

    def _write_marked(self, path: Path, size: int) -> None:
        # Every record starts with the mark, so one search for the mark covers every part of the file.
        with open(path, "wb") as file:
            for number in range(size // RECORD):
                file.write(b"%b %-*d\n" % (self.mark, RECORD - len(self.mark) - 2, number))

    def _iperf3(self, seconds: int) -> None:
        self.desktop.start("iperf3", "-s", "-1", "-B", DESKTOP_IP, "--forceflush").wait_for_text("listening")
        argv = ["iperf3", "-c", DESKTOP_IP, "-C", "cubic", "-t", str(seconds), "-J"]
        result = json.loads(self.laptop.run(*argv, check=False, timeout=seconds + 30).stdout or "{}")
        if error := result.get("error"):
            self.report.claim("iperf3", False, error)
            return
        received, sent = result["end"]["sum_received"], result["end"]["sum_sent"]
        text = f"{received['bits_per_second'] / 1e9:.2f} Gbit/s of TCP (cubic) over {seconds} s, "
        self.report.claim("iperf3", received["bytes"] > 0, text + f"{sent['retransmits']} retransmits")

    def _relay_numbers(self) -> None:
        relay = self.lab.relay
        status = relay.get_json("/status", guide.HEALTH_PORT) or {}
        connections = status.get("connections")
        text = f"{connections} connections, load {status.get('utilization_pct')} %, up {status.get('uptime')}"
        self.report.claim("/status", connections == 2, text)
        metrics = dict(re.findall(r"^shadowmesh_relay_(\w+)\{[^}]*\} (\S+)$", self._metrics(), re.MULTILINE))
        frames, dropped, size = (
            float(metrics.get(name, "nan")) for name in ("frames_total", "frames_dropped", "bytes_relayed")
        )
        text = f"{frames:,.0f} frames, {size / 1e6:,.0f} MB relayed, {dropped:,.0f} dropped"
        self.report.claim("/metrics", frames > 0, text)

    def _metrics(self) -> str:
        return self.lab.relay.get("/metrics", guide.METRICS_PORT)[1]

    def _frames(self, sealed: bytes) -> None:
        """Show a data frame as it left the relay (what a relay sends to its clients is not masked)."""
        address = NetworkKeys(self.key).ip_address
        source, destination = (address(packed) or b"" for packed in (_packed(LAPTOP_IP), _packed(DESKTOP_IP)))
        at = sealed.find(bytes([DATA]) + destination + source + SEALED)
        frame = sealed[at : at + HEADER_SIZE + 32] if at >= 0 else b""
        self.report.claim("one of the frames", at >= 0, f"to     {frame[1:17].hex()}")
        self.report.quote(f"{'':17}from   {frame[17:HEADER_SIZE].hex()}")
        self.report.quote(f"{'':17}sealed {frame[HEADER_SIZE:].hex()}…")

    def _secrets(self, sealed: bytes, plain: bytes, relay: Program) -> None:
        laptop, desktop = _packed(LAPTOP_IP), _packed(DESKTOP_IP)
        wanted = {
            "file": [self.mark],
            "overlay IPs": [laptop + desktop, desktop + laptop, LAPTOP_IP.encode(), DESKTOP_IP.encode()],
            "peer names": [LAPTOP.encode(), DESKTOP.encode()],
            "key": [self.key, self.key.hex().encode()],
        }

        def found(text: bytes) -> list[str]:
            return [what for what, needles in wanted.items() if any(needle in text for needle in needles)]

        def words(text: bytes) -> str:
            return f"FOUND: {', '.join(found(text))}" if found(text) else f"no {', no '.join(wanted)}"

        log = relay.text().encode()
        captured = (
            f"{len(sealed) / 1e6:,.0f} MB (twice: both links) captured while the file moved: {words(sealed)}"
        )
        self.report.claim("its links", not found(sealed), captured)
        self.report.claim("its log", not found(log), words(log))
        seen = {"file", "overlay IPs"} <= set(found(plain))
        where = (
            f"on {LAPTOP}'s shadowmesh0, before sealing, it finds {' and '.join(found(plain)) or 'nothing'}"
        )
        self.report.claim("the search works", seen, where)
        meaning = "(all of these are pseudonyms)"
        self.report.headline(f"What the relay logged about its clients {meaning}")
        for line in relay.text().splitlines():
            if "client joined" in line:
                self.report.quote(re.sub(r"^\S+ ", "", line))


def _packed(ip: str) -> bytes:
    return ipaddress.ip_address(ip).packed


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _obstacles(as_user: bool) -> list[str]:
    """What keeps the demo from running here, a line each."""
    if missing := netlab.missing_tools(TOOLS):
        return missing
    if not (obstacle := netlab.obstacle(as_user)):
        return []
    return [obstacle, "as root it may go: sudo ./scripts/demo"] if as_user else [obstacle]


def _again_in_a_user_namespace(*arguments: str) -> NoReturn:
    """Replace this process by `shadowmesh demo` with rights over namespaces of its own."""
    # `ip netns` keeps its names in /run, where only root may write; mount(8) would insist on being root.
    mount = "ctypes.CDLL(None).mount(b'tmpfs', b'/run', b'tmpfs', 0, None)"
    script = f"import ctypes, os, sys; {mount}; os.execvp(sys.argv[1], sys.argv[1:])"
    again = [sys.executable, "-c", script, netlab.installed("shadowmesh"), "demo", *arguments]
    os.execvp("unshare", [*netlab.USER_NAMESPACE, *again])  # noqa: S606, S607
