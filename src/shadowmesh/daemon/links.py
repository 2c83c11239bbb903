"""Several relays at once: a joined connection to each, which look to the engine like one.

Relays do not know each other, so two devices meet where both are joined; which of their common relays they
use is the mesh's choice (`mesh.paths`), and the connections themselves are what it calls links. A name with
several addresses is several relays (`daemon.names`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

from shadowmesh.daemon.link import RelayLink
from shadowmesh.daemon.listener import Engine
from shadowmesh.daemon.names import ALL, GONE_AFTER, Entry, located
from shadowmesh.net.client import Found, look_up
from shadowmesh.wire.frame import MIN_MAX_FRAME

MAX_LINKS = 4
LOOK_EVERY = (150.0, 210.0)  # seconds between looks at a name while nothing is dialled
LOOK_AGAIN = 1.0  # seconds between two looks at least
LOOK_SECONDS = 10.0
TWIN_WITHIN = 5.0  # seconds between a 4004 and the join of another link of ours that has caused it
TWIN_RATIO, TWIN_BY = 0.8, 0.005  # the other way to the same relay must be so much nearer


class Links:
    """The connections to all relays of a list, each with its own back-off.

    links: at first one for each entry of the list; they change with the addresses of its names, which
    `changed` is called for. ready: one of them at least can be used; since: since when that is so, or not.
    While there is one link alone, its frames go past this. Two links that lead to one relay show as a 4004
    for the one when the other joins: then the nearer is used, the other is dialled when that is lost.
    """

    def __init__(self, links: Sequence[RelayLink]) -> None:
        self.links: tuple[RelayLink, ...] = tuple(links)
        self.changed: Callable[[], None] = lambda: None
        self._entries = [Entry(link) for link in links]
        self._loop = asyncio.get_running_loop()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[RelayLink, asyncio.Task[None]] = {}
        self._open: dict[RelayLink, None] = {}
        self._compared: set[frozenset[RelayLink]] = set()
        self._engine: Engine
        self._alone = len(links) == 1
        self.send_frame: Callable[..., None] = links[0].send_frame if self._alone else self._send
        self.ready = False
        self.since = self._loop.time()
        for link in links:
            self._adopt(link)

    @property
    def listener(self) -> Engine:
        """Who is told what comes in; to be set before `run`."""
        return self._engine

    @listener.setter
    def listener(self, engine: Engine) -> None:
        self._engine = engine
        for link in self.links:
            self._hear(link)

    @property
    def max_frame(self) -> int:
        """See daemon.listener.Link."""
        return min((link.max_frame for link in self._open), default=MIN_MAX_FRAME)

    def _adopt(self, link: RelayLink) -> None:
        link.twin, link.choose, link.ended = self._twin, self._choose, self._over

    def _hear(self, link: RelayLink) -> None:
        link.listener = (_OnlyEar if self._alone else _Ear)(self, link, self._engine)

    def _send(self, data: memoryview | bytes, via: object = None) -> None:
        """Send one data frame by one link; by all that are ready with via=None."""
        if isinstance(via, RelayLink):
            via.send_frame(data)
        else:
            for link in self._open:
                link.send_frame(data)

    async def run(self) -> None:
        """Keep all connections until cancelled; then close them."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for link in self.links:
                    self._start(link)
                for entry in self._entries:
                    self._group.create_task(self._follow(entry), name=f"name of {entry.links[0].url}")
        finally:
            self._group = None
            self._tasks.clear()

    def _start(self, link: RelayLink) -> None:
        if self._group is not None:
            self._tasks[link] = self._group.create_task(link.run(), name=f"link to {link.title}")

    def check(self, reason: str) -> None:
        """Something about the network has changed (see `RelayLink.check`)."""
        for link in self.links:
            link.check(reason)
        for entry in self._entries:
            entry.look.set()

    def redial(self, reason: str) -> None:
        """Give up all connections and dial at once."""
        for link in self.links:
            link.redial(reason)

    # -- names

    async def _follow(self, entry: Entry) -> None:
        """Look a name up now and then; each dial does so, too."""
        while _is_name(entry.host):
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(*LOOK_EVERY)):
                    await entry.look.wait()
            entry.look.clear()
            if not any(link.proxied for link in entry.links):
                with suppress(OSError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        found = await look_up(entry.host, entry.port)
                    self._answered(entry, found)
            await asyncio.sleep(LOOK_AGAIN)

    def _choose(self, link: RelayLink, found: list[Found]) -> list[Found]:
        """Which of the addresses found a link is to dial."""
        entry = self._entry(link)
        if entry is None or not _is_name(link.host):
            return found
        self._answered(entry, found, link)
        return [located(link.pinned, entry.port)] if link.pinned else found

    def _answered(self, entry: Entry, found: list[Found], dialling: RelayLink | None = None) -> None:
        if entry.answered(found, self._loop.time()):
            self._loop.call_later(GONE_AFTER, entry.look.set)
        before = entry.left_out
        room = MAX_LINKS - len(self._entries)
        for each in self._entries:
            each.wanted = each.several[: 1 + room] or ALL
            room -= len(each.wanted) - 1
        if (left_out := entry.left_out) and left_out != before:
            entry.links[0].event("relay_left_out", relay=entry.links[0].url, left_out=", ".join(left_out[:8]))
        for each in self._entries:
            self._spread(each, dialling)

    def _spread(self, entry: Entry, dialling: RelayLink | None = None) -> None:
        """Have a link for each wanted address, and none without one once another is joined."""
        left, free = entry.spread(self._loop.time(), dialling)
        for address in free:
            link = entry.links[0].another()
            link.pinned = address
            entry.links.append(link)
            self._adopt(link)
            self._changed()
            self._start(link)
        joined = any(link.ready for link in entry.links if link not in left)
        for link in left:
            if joined or not link.ready:
                self._remove(entry, link)

    def _remove(self, entry: Entry, link: RelayLink) -> None:
        entry.links.remove(link)
        self.left(link)  # before it closes, so that nothing is sent by it any more
        self._over(link)
        self._compared = {pair for pair in self._compared if link not in pair}
        self._changed()
        if link in self._tasks:
            self._tasks.pop(link).cancel()

    def _entry(self, link: RelayLink) -> Entry | None:
        return next((entry for entry in self._entries if link in entry.links), None)

    def _changed(self) -> None:
        """There are other links than before."""
        before, self.links = self.links, tuple(link for entry in self._entries for link in entry.links)
        was_alone, self._alone = self._alone, len(self.links) == 1
        for link in self.links:
            if link not in before or self._alone is not was_alone:
                self._hear(link)
        self.send_frame = self.links[0].send_frame if self._alone else self._send
        if self._alone is not was_alone:
            for link in self._open:
                # The engine hears of it as if it had just come, with its name or without one.
                via = None if self._alone else link
                if self._alone:
                    self._engine.lost(link)
                self._engine.joined(via)
                self._engine.refused(set(link.refused), via)
                if link.full:
                    self._engine.pause(via)
            if not self._alone:
                self._engine.resume()  # what waits for the one that was alone finds its link
        self.changed()

    # -- called by the ears

    def joined(self, link: RelayLink) -> None:
        """A link has joined its relay."""
        entry = self._entry(link)
        if entry is None:
            return  # it is being closed
        self._open[link] = None
        self._become(True)
        if self._alone:
            self.send_frame = link.send_frame
        self._engine.joined(None if self._alone else link)
        self._spread(entry)

    def left(self, link: RelayLink) -> None:
        """A link is lost, or its relay says that it leaves."""
        if link not in self._open:
            return
        del self._open[link]
        self._become(bool(self._open))
        if self._alone:
            self.send_frame = link.send_frame
        self._engine.lost(None if self._alone else link)

    def _become(self, ready: bool) -> None:
        if ready is not self.ready:
            self.ready = ready
            self.since = self._loop.time()

    # -- two ways to one relay

    def _twin(self, link: RelayLink) -> RelayLink | None:
        """The other link whose join has replaced this one, if that is what happened."""
        since = {
            other: abs(other.since - link.since)
            for other in self._open
            if other is not link and _may_be_one(other, link)
        }
        twin = min(since, key=since.__getitem__, default=None)
        if twin is None or since[twin] >= TWIN_WITHIN:
            return None
        for other in self.links:
            if other.instead is link:
                other.stand_by(twin)
        pair = frozenset((link, twin))
        if pair not in self._compared:
            self._compared.add(pair)
            self._loop.call_later(TWIN_WITHIN, self._compare, link, twin, link.last_rtt)
        return twin

    def _compare(self, link: RelayLink, twin: RelayLink, rtt: float | None) -> None:
        """Once the distance of both is known: was the one that was replaced the nearer one?"""
        other = twin.rtt
        nearer = rtt is not None and other is not None and rtt <= min(other * TWIN_RATIO, other - TWIN_BY)
        if nearer and twin in self._open and link.instead is twin:
            link.take_over()

    def _over(self, link: RelayLink) -> None:
        """A link has ended, or was not to be had: of those that stand by for it the nearest takes over."""
        waiting = [other for other in self.links if other.instead is link]
        if waiting:
            nearest = min(waiting, key=lambda other: other.last_rtt or 1.0)
            for other in waiting:
                if other is not nearest:
                    other.stand_by(nearest)
            nearest.take_over()


class _Ear:
    """Hears one link of several."""

    def __init__(self, links: Links, link: RelayLink, engine: Engine) -> None:
        self.on_frame: Callable[[memoryview], None] = partial(engine.on_frame, via=link)
        self.gone: Callable[[bytes], None] = partial(engine.gone, via=link)
        self.refused: Callable[[set[bytes]], None] = partial(engine.refused, via=link)
        self.hold: Callable[[bytes], None] = partial(engine.hold, via=link)
        self.release: Callable[[bytes], None] = partial(engine.release, via=link)
        self.joined: Callable[[], None] = partial(links.joined, link)
        self.lost: Callable[[], None] = partial(links.left, link)
        self.draining: Callable[[], None] = partial(links.left, link)
        self.pause: Callable[[], None] = partial(engine.pause, via=link)
        self.resume: Callable[[], None] = partial(engine.resume, via=link)


class _OnlyEar:
    """Hears a link that is alone: its frames go no other way than without `Links`."""

    def __init__(self, links: Links, link: RelayLink, engine: Engine) -> None:
        self.on_frame: Callable[[memoryview], None] = engine.on_frame
        self.gone: Callable[[bytes], None] = engine.gone
        self.refused: Callable[[set[bytes]], None] = engine.refused
        self.hold: Callable[[bytes], None] = engine.hold
        self.release: Callable[[bytes], None] = engine.release
        self.joined: Callable[[], None] = partial(links.joined, link)
        self.lost: Callable[[], None] = partial(links.left, link)
        self.draining: Callable[[], None] = engine.draining
        self.pause: Callable[[], None] = engine.pause
        self.resume: Callable[[], None] = engine.resume


def _may_be_one(link: RelayLink, other: RelayLink) -> bool:
    """Whether two links may be to the same relay, by what it calls itself."""
    one, two = link.relay, other.relay
    return one is None or two is None or (one.server_name, one.region) == (two.server_name, two.region)


def _is_name(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def as_one(links: Sequence[RelayLink]) -> RelayLink | Links:
    """One link as it is where its address is written out, so that nothing is in between; else as `Links`."""
    return links[0] if len(links) == 1 and not _is_name(links[0].host) else Links(links)
