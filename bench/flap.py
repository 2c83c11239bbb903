"""`./scripts/bench flap`: both ends and both relays of a tunnel break again and again, for minutes.

The real programs in network namespaces: two daemons, each joined to two relays, and a TCP transfer and a ping
from one to the other. Round by round one part or several at the same time lose their carrier or change
their address, fall silent, are stopped, killed or ended and started again, as a seed says. Each time the ping
has to be answered again and the transfer to go on; in the end it is checked that nothing is left of it all.

Prints Markdown tables, writes them with JSON into bench/results/, and ends with status 1 when something did
not hold. docs/performance.md explains what is checked.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, NamedTuple

from bench import environment, flap_checks, parse, soak_watch
from bench.arguments import DOCS, ROOT, at_least_one, parsed
from bench.flap_checks import FIRST, SECOND, SURVIVORS, A, B, Facts, Round
from bench.peers import CONGESTION
from bench.report import write_docs
from bench.soak_checks import is_error
from bench.soak_probe import Probe
from bench.soak_watch import Sample
from shadowmesh.testing import breaks, faults, guide, netlab
from shadowmesh.testing.faults import OTHER_METRICS, OTHER_PORT, Scene
from shadowmesh.testing.netlab import RELAY, Lab
from shadowmesh.testing.program import LabError, Program, wait_for

PROGRAMS = {
    A: ("shadowmesh-daemon-a", "a", guide.DAEMON_PORT),
    B: ("shadowmesh-daemon-b", "b", guide.DAEMON_PORT),
    FIRST: ("shadowmesh-relay", RELAY, guide.METRICS_PORT),
    SECOND: ("other-relay", RELAY, OTHER_METRICS),
}
"""Name of the program, its host, port of its metrics."""
SETTINGS = {"drain_window": 0, "log_format": "json"}
MORE = 0.4
"""Chance of one more fault at the same time."""
_PATIENCE = 60.0


@dataclass(frozen=True)
class Effort:
    """How long, in seconds."""

    warm: float
    """Of faults before what counts."""
    seconds: float
    broken: float
    """That a fault lasts at most."""
    rest: float
    """Between two rounds at most, and at last."""
    lapse: float
    """For which the traffic goes on at most: a session is done after 180 s, and so are its timers."""
    word: str
    """What the relays' probe is told."""


QUICK = Effort(0.0, 8.0, 0.5, 0.2, 0.0, "quick")


class Fault(NamedTuple):
    """What may break a part. announced: something tells the clients of it, or of its end (but not daemon a
    that b is there again); blocks: there is no way while it lasts."""

    part: str
    what: str
    announced: bool
    blocks: bool
    breaks: Callable[[], AbstractContextManager[object]]

    def __str__(self) -> str:
        return f"{self.part}: {self.what}"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when something did not hold or failed, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    if obstacle := environment.obstacle({**netlab.TOOLS, "iptables": "iptables"}):
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    effort = QUICK if arguments.quick else Effort(240.0, arguments.seconds, 8.0, 4.0, 240.0, "full")
    print(f"bench: seed {arguments.seed}", file=sys.stderr, flush=True)
    told = environment.describe([], [])
    told["seed"], told["seconds"] = str(arguments.seed), f"{effort.seconds:g}"
    with Probed(effort.word) as lab:
        try:
            facts = run(lab, effort, Random(arguments.seed))
        except (LabError, AssertionError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            if arguments.keep:
                arguments.keep.write_text(lab.logs())
    found = flap_checks.checks(facts, short=arguments.quick)
    text = flap_checks.markdown(facts, found, told)
    print(text, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "flap.md").write_text(text)
    (arguments.output / "flap.json").write_text(flap_checks.to_json(facts, found, told))
    if arguments.write_docs:
        write_docs(DOCS, "flap", text)
    broken = [check for check in found if not check.held]
    for check in broken:
        print(f"bench: {check.what}: {check.seen}", file=sys.stderr)
    return 1 if broken else 0


class Probed(Lab):
    """A lab whose programs run with a probe. bare: the relays before the first client."""

    def __init__(self, word: str) -> None:
        super().__init__("a", "b", congestion=CONGESTION)
        self.bare: dict[str, Sample] = {}
        self._word = word
        self._probes: dict[str, Probe] = {}

    def argv(self, program: str, name: str) -> Sequence[str]:
        """With the probe before it."""
        probe = self._probes[name] = Probe(self.directory / f"{name}-{len(self.programs)}.jsonl")
        kind = "daemon" if program == "shadowmesh-daemon" else self._word
        code = "from bench.soak_probe import main; main()"
        return ("env", "-C", str(ROOT), sys.executable, "-c", code, str(probe.file), kind)

    def start_client(self, *args: Any, **changes: Any) -> Program:
        """Look at the relays before the first one."""
        self.bare = self.bare or {name: self.look(name) for name in (FIRST, SECOND)}
        return super().start_client(*args, **changes)

    def program(self, name: str) -> Program:
        """The one that runs, or ran last, by this title."""
        return next(each for each in reversed(self.programs) if each.name == PROGRAMS[name][0])

    def look(self, name: str) -> Sample:
        """Its sample."""
        own, host, port = PROGRAMS[name]
        prefix = soak_watch.RELAY if host == RELAY else soak_watch.DAEMON
        return soak_watch.take(
            self.program(name), self._probes[own], lambda: soak_watch.scrape(self[host], port, prefix)
        )

    def types(self, name: str) -> dict[str, int]:
        """Its objects by type."""
        types: dict[str, int] = self._probes[PROGRAMS[name][0]].types(self.program(name))["types"]
        return types


def run(lab: Probed, effort: Effort, chance: Random) -> Facts:
    """Let it all happen; what was seen."""
    with closing(Scene(lab, two=True, settings=SETTINGS)) as scene:
        flap = Flap(lab, scene, effort, chance)
        flap.run()
        scene.ping.signal(signal.SIGINT)
        scene.ping.wait()
        facts = flap.facts
        pings = parse.ping(re.sub(r"^\[[\d.]+\] ", "", scene.ping.text(), flags=re.MULTILINE))
        facts.pings, facts.answers = pings.sent, len(pings.times)
        facts.megabytes = scene.transfer.received * faults.CHUNK / 1e6
    flap.end()
    return facts


class Flap:
    """What happens to a scene with two relays; `facts` is what was seen."""

    def __init__(self, lab: Probed, scene: Scene, effort: Effort, chance: Random) -> None:
        self.facts = Facts(bare=lab.bare, samples={name: [] for name in SURVIVORS})
        self._lab = lab
        self._scene = scene
        self._effort = effort
        self._chance = chance
        self._nets = 0
        self._deck: list[Fault] = []
        self._began = time.monotonic()

    def run(self) -> None:
        """The faults of the warm-up and those that count."""
        facts, lab = self.facts, self._lab
        self._settle()
        facts.start = {name: lab.look(name) for name in PROGRAMS}
        self._flap(self._effort.warm)
        facts.rounds.clear()
        for samples in facts.samples.values():
            samples.clear()
        self._settle()
        facts.warm = {name: lab.look(name) for name in SURVIVORS}
        facts.types_warm = {name: lab.types(name) for name in SURVIVORS}
        self._say("the warm-up is over")
        self._flap(self._effort.seconds)
        self._settle()
        self._say("all is well again; what has ended runs out")
        with suppress(LabError):  # a check says what is left
            wait_for(self._forgotten, "end of the objects of former sessions", self._effort.lapse)
        facts.peers = {
            name: len((lab.status(PROGRAMS[name][1]) or {"peers": []})["peers"]) for name in (A, B)
        }

    def end(self) -> None:
        """Look at what is left without traffic, and then without clients."""
        facts, lab = self.facts, self._lab
        time.sleep(self._effort.rest)
        for name in PROGRAMS:
            facts.end[name] = self._quiet(name, facts.start[name])
        self._count_joins("a")
        self._count_joins("b")
        facts.statuses = {name: lab.program(name).stop(_PATIENCE) for name in (A, B)}
        for name in (FIRST, SECOND):
            with suppress(LabError):  # a check says what is left
                wait_for(partial(self._is_empty, name), "empty relay", _PATIENCE)
            facts.empty[name] = self._quiet(name, facts.bare[name])
            facts.statuses[name] = lab.program(name).stop(_PATIENCE)
        facts.errors = [line for each in lab.programs for line in errors(each.name, each.text())]

    # -- rounds

    def _flap(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._round(self._draw())
            for name in SURVIVORS:
                self.facts.samples[name].append(self._lab.look(name))
            time.sleep(self._chance.uniform(0.1, 1.0) * self._effort.rest)

    def _round(self, together: Sequence[Fault]) -> None:
        for_seconds = self._chance.uniform(0.1, 1.0) * self._effort.broken
        took = self._scene.outage(lambda _: self._break(together, for_seconds))
        names = [str(each) for each in together]
        self.facts.rounds.append(Round(names, all(each.announced for each in together), round(took, 3)))
        self._say(f"{took:.2f} s after {' + '.join(names)}, for {for_seconds:.1f} s")

    def _break(self, together: Sequence[Fault], seconds: float) -> float:
        """When there was a way again (Unix time): at once, if one relay is left and both ends are well."""
        relays = {each.part for each in together} & {FIRST, SECOND}
        blocked = len(relays) == 2 or any(each.blocks for each in together)
        with ExitStack() as stack:
            for each in together:
                stack.enter_context(each.breaks())
            back = time.time()
            time.sleep(seconds)
        return time.time() if blocked else back

    def _draw(self) -> list[Fault]:
        """One fault or several of different parts; each fault has its turn."""
        found: list[Fault] = []
        while not found or self._chance.random() < MORE:
            if not self._deck:
                self._deck = self._faults()
                self._chance.shuffle(self._deck)
            if any(each.part == self._deck[-1].part for each in found):
                break
            found.append(self._deck.pop())
        return found

    def _faults(self) -> list[Fault]:
        lab = self._lab
        found = [
            Fault(B, "killed", False, True, partial(self._restart_b, kill=True)),
            Fault(B, "ended", False, True, partial(self._restart_b, kill=False)),
            Fault(FIRST, "killed", True, False, partial(self._restart_relay, kill=True)),
            Fault(FIRST, "drains", True, False, partial(self._restart_relay, kill=False)),
        ]
        for part, name in ((A, "a"), (B, "b")):
            way = partial(
                breaks.dropped, lab.relay, ("INPUT", "-i", f"to-{name}"), ("OUTPUT", "-o", f"to-{name}")
            )
            found += [
                Fault(part, "no carrier", True, True, partial(breaks.no_carrier, lab, name)),
                Fault(part, "black hole", False, True, way),
                Fault(part, "address changed", True, False, partial(self._renumber, name)),
            ]
        for part, port in ((FIRST, guide.RELAY_PORT), (SECOND, OTHER_PORT)):
            found.append(Fault(part, "black hole", False, False, partial(breaks.black_hole, lab, port)))
        for part in PROGRAMS:
            client = part in (A, B)
            stop = partial(self._stop, part)
            found.append(Fault(part, "stopped", announced=client, blocks=client, breaks=stop))
        return found

    def _stop(self, part: str) -> AbstractContextManager[None]:
        return breaks.stopped(self._lab.program(part))

    def _restart_b(self, *, kill: bool) -> AbstractContextManager[None]:
        self._count_joins("b")
        return breaks.ended(self._lab.program(B), partial(self._scene.start_client, "b", faults.B), kill=kill)

    def _restart_relay(self, *, kill: bool) -> AbstractContextManager[None]:
        return breaks.ended(self._lab.program(FIRST), self._scene.start_first, kill=kill)

    def _renumber(self, name: str) -> AbstractContextManager[None]:
        self._nets += 1
        breaks.renumber(self._lab, name, f"198.18.{100 + self._nets % 100}")
        return nullcontext()

    # -- what is seen

    def _count_joins(self, name: str) -> None:
        """Those of a daemon that is about to end."""
        for relay in (self._lab.status(name) or {"relays": []})["relays"]:
            if f":{OTHER_PORT}" in relay["server"]:
                self.facts.joined += relay["connects"]

    def _is_empty(self, name: str) -> bool:
        return not self._lab.look(name).metrics["networks"]

    def _forgotten(self) -> bool:
        time.sleep(self._effort.rest)  # to count objects stops a daemon for a moment
        self.facts.types = {name: self._lab.types(name) for name in (A, B, SECOND)}
        return all(flap_checks.few_objects(self.facts.types[name]) for name in (A, B))

    def _settle(self) -> None:
        """Wait until both are joined to both relays."""

        def settled() -> bool:
            return all(len(self._scene.joined(name)) == 2 for name in ("a", "b"))

        wait_for(settled, "connection of both to both relays", _PATIENCE)

    def _quiet(self, name: str, before: Sample) -> Sample:
        """Its sample, once it has as few files and tasks as before; a check says so if it never has."""

        def look() -> Sample | None:
            sample = self._lab.look(name)
            rests = sample.fds <= before.fds and len(sample.tasks) <= len(before.tasks)
            return sample if rests else None

        try:
            return wait_for(look, "rest", _PATIENCE / 4)
        except LabError:
            return self._lab.look(name)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s: {text}", file=sys.stderr, flush=True)


def errors(name: str, log: str) -> Iterator[str]:
    """Lines of a program's log that tell of a fault of its own."""
    for line in log.splitlines():
        if is_error(line) if line.startswith("{") else re.search(r"\[(error|critical)|Traceback", line):
            yield f"{name}: {line}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench flap", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--seconds", type=at_least_one, default=600, help="after four minutes of the same (default: 600)"
    )
    parser.add_argument(
        "--seed", type=int, default=SystemRandom().randrange(1 << 32), help="of all that is random"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the logs of all programs there")
    return parsed(parser, argv, quick="seconds; memory and marks are not judged")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
