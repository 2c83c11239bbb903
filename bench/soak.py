"""`./scripts/bench soak`: the relay for minutes among clients that come, go, break off and attack it.

The real relay in a namespace, two real daemons with a steady ping and TCP stream through it, honest pairs at
full load, a crowd of members, hostile clients of every kind; reloads, changes of the log level, scrapes.
After a warm-up of the same all leave, and after the soak again: then it is checked what must hold.

Prints Markdown tables, writes them with JSON into bench/results/, and ends with status 1 when something did
not hold. docs/performance.md explains what is checked.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from bench import environment, parse, soak_load, soak_report, soak_watch
from bench.arguments import DOCS, ROOT, at_least_one, parsed
from bench.peers import CONGESTION
from bench.report import write_docs
from bench.soak_checks import Check, Facts, checks
from bench.soak_client import Place
from bench.soak_probe import Probe
from bench.soak_report import Run
from bench.soak_watch import Sample
from shadowmesh.testing import guide, netlab
from shadowmesh.testing.netlab import RELAY_IP4, Lab
from shadowmesh.testing.program import LabError, Program, wait_for
from shadowmesh.wire.frame import HEADER_SIZE

SOURCES = {"members": "198.19.1.{}", "enemies": "198.19.2.{}"}
"""Each of these namespaces has a whole /24, so that what counts for one source counts for one client."""
DAEMONS = {"a": "10.10.10.1", "b": "10.10.10.2"}
MBIT = 20
"""Of the TCP stream between the daemons, Mbit/s."""
_PATIENCE = 60.0
_BESIDE = 3.0
"""Seconds that closing handshakes, and the last frames, may take after the last client has gone."""

SETTINGS: Mapping[str, Any] = {
    "bind_address": "0.0.0.0",
    "connection_timeout": 30,
    "max_connections": 400,
    "queue_size": 500,
    "log_format": "json",
    "limits": {"queue_memory": 32 << 20},
}
"""What the relay has beside the guide's file. Its limits are the default ones but for the memory of its
queues, which shall be full; a client that is silent is given up sooner, so that more of them vanish."""


@dataclass(frozen=True)
class Effort:
    """How much, for how long (seconds)."""

    warm: float
    """Until the heap is as high as this load makes it: 210 s have been seen."""
    soak: float
    every: float
    """Between two samples."""
    pairs: int
    members: int
    enemies: int
    pace: float
    """Seconds that something in a client's life takes on average."""
    word: str
    """What the probe is told: of the relay's timers."""


FULL = Effort(240.0, 600.0, 10.0, 20, 60, 24, 1.0, "full")
QUICK = Effort(0.6, 2.5, 0.5, 4, 10, 24, 0.1, "quick")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when something did not hold or failed, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    tools = {**netlab.TOOLS, "iperf3": "iperf3"}
    if obstacle := environment.obstacle(tools):
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    effort = QUICK if arguments.quick else _lasting(arguments.minutes)
    print(f"bench: seed {arguments.seed}", file=sys.stderr, flush=True)
    told = environment.describe([], ["iperf3"])
    told["seed"] = str(arguments.seed)
    told["minutes"] = f"{effort.soak / 60:g}"
    with Lab(*DAEMONS, "load", *SOURCES, congestion=CONGESTION) as lab:
        soak = Soak(lab, effort, arguments.seed)
        try:
            soak.run()
        except LabError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            if arguments.keep:
                arguments.keep.write_text(lab.logs())
    found = checks(soak.facts, short=effort is QUICK)
    text = soak_report.markdown(soak.facts, soak.runs, found, told)
    print(text, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "soak.md").write_text(text)
    (arguments.output / "soak.json").write_text(soak_report.to_json(soak.facts, soak.runs, found, told))
    if arguments.write_docs:
        write_docs(DOCS, "soak", text)
    return _verdict(found)


class Soak:
    """One relay and all that happens to it; `facts` and `runs` are what was seen."""

    def __init__(self, lab: Lab, effort: Effort, seed: int) -> None:
        self.facts = Facts()
        self.runs: list[Run] = []
        self._lab = lab
        self._effort = effort
        self._chance = Random(seed)
        self._relay: Program
        self._probe = Probe(lab.directory / "probe.jsonl")
        self._logged_since: float | None = None
        self._began = time.monotonic()

    def run(self) -> None:
        """Warm-up, idle, soak, idle."""
        facts, lab = self.facts, self._lab
        for name, sources in SOURCES.items():
            host, prefix = lab[name], sources.format(0) + "/24"
            host.ip(f"route add local {prefix} dev lo")
            lab.relay.ip(f"route add {prefix} via {host.ip4} congctl {CONGESTION}")
        self._start_relay()
        facts.start = self._sample()
        facts.types_before = self._probe.types(self._relay)
        self._mix(self._effort.warm)
        facts.before = self._idle()
        self._say("idle after the warm-up")
        self.runs.clear()
        facts.samples = self._mix(self._effort.soak)
        facts.after = self._idle()
        self._say("idle after the soak")
        facts.types_after = self._probe.types(self._relay)
        facts.status = self._relay.stop(_PATIENCE)
        facts.seconds = time.monotonic() - self._began
        facts.log = self._relay.text()

    def _start_relay(self) -> None:
        config = self._lab.write("relay-config.yaml", guide.merged(guide.RELAY_CONFIG, SETTINGS))
        probe = (sys.executable, "-c", "from bench.soak_probe import main; main()", str(self._probe.file))
        argv = ("env", "-C", str(ROOT), *probe, self._effort.word, "-config", str(config))
        self._relay = self._lab.relay.start(*argv, name="shadowmesh-relay")
        self._relay.wait_for(
            lambda: self._lab.relay.get_json("/health", guide.HEALTH_PORT), "answer from /health"
        )

    # -- who is there

    def _mix(self, seconds: float) -> list[Sample]:
        """Everybody comes, stays so long, and goes; what was seen meanwhile."""
        effort = self._effort
        load = self._actor("load", "soak_load", 2 * effort.pairs)
        self._start_daemons()
        ping, tcp = self._start_traffic(seconds)
        crowds = [
            self._actor("members", "soak_members", effort.members),
            self._actor("enemies", "soak_hostile", effort.enemies),
        ]
        self._say("all are there")
        samples = self._watch(seconds, [load, ping, *crowds])
        load.signal(signal.SIGTERM)
        ping.signal(signal.SIGINT)
        totals = json.loads(load.wait_for_text(r'{"totals": (.*)}\n', _PATIENCE)[1])
        for crowd in crowds:
            crowd.signal(signal.SIGTERM)
        for crowd in crowds:
            self.facts.tally.update(_tally(crowd))
        self._account(totals)
        load.signal(signal.SIGTERM)
        if load.wait(_PATIENCE):
            raise LabError(load.text())
        self.runs += [Run(**run) for run in map(json.loads, load.text().splitlines()) if "totals" not in run]
        self._end_daemons(ping, tcp)
        return samples

    def _actor(self, host: str, module: str, count: int) -> Program:
        place = Place(
            (RELAY_IP4, guide.RELAY_PORT),
            SOURCES.get(host, ""),
            self._chance.randrange(1 << 32),
            count,
            self._effort.pace,
        )
        code = f"from bench.{module} import main; main()"
        return self._lab[host].start(
            *("env", "-C", str(ROOT), sys.executable, "-c", code, place.to_json()), name=module
        )

    def _start_daemons(self) -> None:
        key = self._chance.randbytes(32).hex()
        for name, ip in DAEMONS.items():
            self._lab.start_client(name, f"{ip}/24", key, wait=False)
        for name in DAEMONS:
            self._lab.wait_connected(name, _PATIENCE)
        self._lab["a"].wait_for_ping(DAEMONS["b"])

    def _start_traffic(self, seconds: float) -> tuple[Program, Program]:
        """A ping and a TCP stream from daemon to daemon."""
        a, b, to = self._lab["a"], self._lab["b"], DAEMONS["b"]
        server = b.start("iperf3", "-s", "-1", "-B", to, "--forceflush", name="iperf3-server")
        server.wait_for_text("Server listening", _PATIENCE)
        stream = ("-t", str(max(1, round(seconds))), "-b", f"{MBIT}M", "-C", CONGESTION, "-J")
        tcp = a.start("iperf3", "-c", to, *stream, name="iperf3")
        return a.start("ping", "-n", "-i", "0.2", to, name="ping"), tcp

    def _end_daemons(self, ping: Program, tcp: Program) -> None:
        ping.wait(_PATIENCE)
        tcp.wait(_PATIENCE)
        pings, stream = parse.ping(ping.text()), parse.iperf3_tcp(tcp.text())
        connects = sum((self._lab.status(name) or {})["relay"]["connects"] for name in DAEMONS)
        self.facts.tally["dialled"] += connects
        self.facts.tally["joined"] += connects
        self.facts.daemons.append(
            {
                "connects": connects,
                "pings": pings.sent,
                "answers": len(pings.times),
                "mbit": stream.bits_per_second / 1e6,
            }
        )
        for name in DAEMONS:
            self._lab.client_programs[name].stop(_PATIENCE)

    def _account(self, totals: Mapping[str, int]) -> None:
        """What the honest pairs sent, and what the relay says of their connections."""
        known = [each for each in self._probe.connections(self._relay) if each[0] == soak_load.PEER_ID]
        received, bytes_received, relayed, bytes_relayed = (
            sum(each) for each in [*zip(*known, strict=True)][1:]
        )
        frames = totals["frames"]
        self.facts.honest.append(
            {
                "sent": frames,
                "received": received,
                "relayed": relayed,
                "bytes sent": totals["payload"] + HEADER_SIZE * frames,
                "bytes received": bytes_received,
                "bytes relayed": bytes_relayed,
            }
        )
        self.facts.tally["dialled"] += totals["dialled"]
        self.facts.tally["joined"] += totals["dialled"]

    # -- what happens meanwhile

    def _watch(self, seconds: float, actors: Sequence[Program]) -> list[Sample]:
        """Take samples, scrape and reload; nobody may end."""
        effort, lab, began = self._effort, self._lab, time.monotonic()
        sampled, scraped, reloaded = began, began, began
        samples = [self._sample()]
        while (now := time.monotonic()) < began + seconds:
            for actor in (*actors, self._relay):
                if actor.status is not None:
                    raise LabError(f"{actor.name} has ended with status {actor.status}\n{actor.text()}")
            if now >= sampled + effort.every:
                sampled += effort.every
                samples.append(self._sample())
                self._show(samples)
            if now >= scraped + effort.pace:
                scraped = now
                for path in ("/health", "/ready", "/status"):
                    lab.relay.get(path, guide.HEALTH_PORT)
                soak_watch.scrape(lab.relay)
            if now >= reloaded + 12 * effort.pace:
                reloaded = now
                self._reload(other_settings(self._chance))
            time.sleep(effort.pace / 20)
        samples.append(self._sample())
        self._reload({})
        return samples

    def _reload(self, changes: Mapping[str, Any]) -> None:
        now, logs = time.monotonic(), changes.get("log_routing") or changes.get("frame_logging")
        if self._logged_since is not None:
            self.facts.logged_seconds += now - self._logged_since
        self._logged_since = now if logs else None
        text = guide.merged(guide.merged(guide.RELAY_CONFIG, SETTINGS), changes)
        self._lab.write("relay-config.yaml", text)
        self._relay.signal(signal.SIGHUP)
        self.facts.reloads += 1

    def _show(self, samples: Sequence[Sample]) -> None:
        last, before = samples[-1], samples[-2]
        metrics = last.metrics
        frames = (metrics["frames_total"] - before.metrics["frames_total"]) / (last.at - before.at)
        self._say(
            f"{last.rss:.1f} MB, {last.blocks:,} blocks, {last.fds} files, {len(last.tasks)} tasks, "
            f"{metrics['connections']:.0f} connections, {metrics['connections_unjoined']:.0f} not joined, "
            f"{metrics['queued_bytes'] / 1e6:.1f} MB queued, {frames:,.0f} frames/s, "
            f"late {metrics['loop_lag_worst_seconds'] * 1000:.0f} ms, "
            f"p99 {metrics['latency_ms{0.99}']:.1f} ms"
        )

    def _sample(self) -> Sample:
        return soak_watch.take(self._relay, self._probe, lambda: soak_watch.scrape(self._lab.relay))

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s: {text}", file=sys.stderr, flush=True)

    # -- nobody is there

    def _idle(self) -> Sample:
        """Wait until all is given back, and look closely."""

        def empty() -> bool:
            metrics = soak_watch.scrape(self._lab.relay)
            return not (metrics["connections"] + metrics["connections_unjoined"] + metrics["networks"])

        def quiet() -> bool:
            return self._sample().fds == self.facts.start.fds

        self._say("all have gone")
        for condition, patience in ((empty, _PATIENCE), (quiet, _PATIENCE / 4)):
            try:
                wait_for(condition, "rest", patience)
            except LabError:
                break  # a check says what is left
        time.sleep(_BESIDE * self._effort.pace)
        return self._sample()


def other_settings(chance: Random) -> dict[str, Any]:
    """A change of the configuration that a relay takes over as it runs."""
    return {
        "log_level": chance.choice(("debug", "info", "warning")),
        "log_routing": chance.random() < 0.3,
        "frame_logging": chance.random() < 0.3,
        "zero_knowledge": chance.random() < 0.7,
        "connection_timeout": chance.choice((25, 30, 40)),
        "max_connections": chance.choice((100, 400, 1000)),
        "queue_size": chance.choice((250, 500, 1000)),
        "read_buffer_size": chance.choice((4096, 65536)),
        "write_buffer_size": chance.choice((4096, 65536)),
        "limits": {
            "queue_memory": chance.choice((16, 32)) << 20,
            "device_bytes_per_second": chance.choice((0, 0, 100_000_000)),
        },
    }


def _tally(crowd: Program) -> Counter[str]:
    """What a crowd says that it did."""
    if crowd.wait(_PATIENCE):
        raise LabError(f"{crowd.name} failed\n{crowd.text()}")
    tally: dict[str, int] = json.loads(crowd.text().splitlines()[-1])["tally"]
    return Counter(tally)


def _verdict(found: Sequence[Check]) -> int:
    broken = [check for check in found if not check.held]
    for check in broken:
        print(f"bench: {check.what}: {check.seen}", file=sys.stderr)
    return 1 if broken else 0


def _lasting(minutes: float) -> Effort:
    return Effort(**{**vars(FULL), "soak": 60 * minutes})


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench soak", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--minutes", type=at_least_one, default=10, help="of the soak itself (default: 10)")
    parser.add_argument(
        "--seed", type=int, default=SystemRandom().randrange(1 << 32), help="of all that is random"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the logs of all programs there")
    return parsed(parser, argv, quick="seconds; memory is not judged")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
