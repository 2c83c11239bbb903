"""Load on flows from a sending to a receiving socket: as much as goes, or paced whatever comes back.

It shares the cores with what it measures, so it is lean: one thread, plain sockets and epoll; what is sent
was made beforehand; what arrives is counted, with a look at the first byte of each burst, and thrown away.

Latency needs no stamps in the frames. TCP keeps the order, and so does whatever is between the two ends of a
flow; so the times at which its bursts were *due* wait in a queue beside it. It is counted from there to the
arrival of the burst's last byte: when a sender is held up, that counts too (no "coordinated omission").
"""

from __future__ import annotations

import random
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from shadowmesh.testing.program import LabError

FIRST_BYTE = 0x82
"""Of each burst as it arrives: a final WebSocket frame of binary data, unmasked."""
DRAIN_SECONDS = 5.0
IN_FLIGHT = 24
"""Bursts on their way at full load, over all flows: enough to keep every part of the way busy, and fewer
frames than a relay queues."""
_SCRATCH = 256 * 1024


class Burst:
    """Frames that one call sends on one flow, made once."""

    __slots__ = ("arrives", "frames", "kind", "parts", "payload", "size")

    def __init__(self, kind: str, frames: int, payload: int, parts: Sequence[bytes], arrives: int) -> None:
        self.kind = kind
        """Under what its latency is kept."""
        self.frames = frames
        self.payload = payload
        """Bytes, of all its frames."""
        self.parts = parts
        self.size = sum(map(len, parts))
        """Bytes that are sent."""
        self.arrives = arrives
        """Bytes that the receiver gets for it."""


class Flow:
    """A pair of non-blocking sockets with something between them."""

    __slots__ = ("arrived", "edge", "expected", "in_flight", "promised", "receiver", "sender", "unsent")

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender = sender
        self.receiver = receiver
        self.unsent: deque[memoryview] = deque()
        self.expected: deque[tuple[int, int, Burst]] = deque()
        """For each burst on its way: its end in the stream that arrives, when it was due (ns), itself."""
        self.promised = self.arrived = self.edge = self.in_flight = 0

    def send(self, burst: Burst, due: int) -> None:
        """Send or queue."""
        self.promised += burst.arrives
        self.expected.append((self.promised, due, burst))
        self.in_flight += 1
        sent = 0
        if not self.unsent:
            try:
                sent = self.sender.sendmsg(burst.parts)
            except BlockingIOError:
                pass
            if sent == burst.size:
                return
        for part in burst.parts:
            if sent < len(part):
                self.unsent.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        while self.unsent:
            part = self.unsent[0]
            try:
                sent = self.sender.send(part)
            except BlockingIOError:
                return
            if sent < len(part):
                self.unsent[0] = part[sent:]
                return
            self.unsent.popleft()


class Sample(NamedTuple):
    """What came through between two moments."""

    seconds: float
    frames: int
    payload: int
    subject: float
    """Processor seconds of what is measured …"""
    generator: float
    """… and of this process."""


Latencies: TypeAlias = "dict[str, array[int]]"
"""Of each kind of burst, nanoseconds."""


class Load:
    """The flows and the loop that drives them. `subject` gives the processor seconds of what is measured."""

    def __init__(self, flows: Sequence[Flow], subject: Callable[[], float]) -> None:
        self._flows = flows
        self._subject = subject
        self._scratch = bytearray(_SCRATCH)
        self._epoll = select.epoll()
        self._receivers: dict[int, Flow] = {}
        self._senders: dict[int, Flow] = {}
        for flow in flows:
            flow.sender.setblocking(False)
            flow.receiver.setblocking(False)
            self._receivers[flow.receiver.fileno()] = flow
            self._senders[flow.sender.fileno()] = flow
            self._epoll.register(flow.receiver, select.EPOLLIN)
            self._epoll.register(flow.sender, select.EPOLLIN)
        self._ready: deque[Flow] = deque()
        self._cap = 0
        self._in_flight = self._frames = self._payload = 0
        self._from = 0
        self._latencies: Latencies = {}
        self._late: array[int] = array("q")

    @property
    def arrived(self) -> tuple[int, int]:
        """Frames and payload bytes of all runs so far. Between two runs that is also what was sent."""
        return self._frames, self._payload

    def saturate(self, bursts: Sequence[Burst], warm: float, seconds: float) -> Sample:
        """As much as goes, after `warm` seconds for `seconds`; flow n sends `bursts[n]`, all in turn."""
        of_flow = dict(zip(self._flows, bursts, strict=True))
        self._cap = -(-IN_FLIGHT // len(self._flows))
        self._ready = deque(self._flows)
        self._from = 1 << 63  # no latencies
        begin = time.monotonic() + warm
        end = begin + seconds
        before = None
        while (now := time.monotonic()) < end:
            if before is None and now >= begin:
                before = self._clock()
            while self._in_flight < IN_FLIGHT and self._ready:
                flow = self._ready.popleft()
                self._send(flow, of_flow[flow], 0)
                if flow.in_flight < self._cap:
                    self._ready.append(flow)
            self._turn(0.1)
        after = self._clock()
        self._cap = 0
        self._drain()
        return _between(before or after, after)

    def paced(
        self, bursts: Sequence[Sequence[Burst]], weights: Sequence[float], warm: float, seconds: float
    ) -> tuple[Sample, Latencies, array[int]]:
        """Bursts at random moments (a Poisson process), whatever comes back.

        `bursts[n]` are those that flow n may send, `weights` how many of each kind there are a second, over
        all flows. Returns what came through, latencies, and how late this process itself was to send (ns).
        """
        self._latencies = {burst.kind: array("q") for burst in bursts[0]}
        self._late = array("q")
        plan = _plan(self._flows, bursts, weights, warm + seconds)
        begin = time.monotonic_ns() + 1_000_000
        self._from = begin + int(warm * 1e9)
        before = None
        pending = next(plan, None)
        while pending is not None:
            now = time.monotonic_ns()
            if before is None and now >= self._from:
                before = self._clock()
            # No more than a few at once, so that what arrives meanwhile is not looked at late.
            for _ in range(8):
                if pending is None or begin + pending[0] > now:
                    break
                offset, flow, burst = pending
                self._late.append(now - begin - offset)
                self._send(flow, burst, begin + offset)
                pending = next(plan, None)
            if pending is not None:
                self._turn((begin + pending[0] - time.monotonic_ns()) / 1e9)
        after = self._clock()
        self._drain()
        return _between(before or after, after), self._latencies, self._late

    def _send(self, flow: Flow, burst: Burst, due: int) -> None:
        self._in_flight += 1
        if flow.unsent:
            flow.send(burst, due)
            return
        flow.send(burst, due)
        if flow.unsent:
            self._epoll.modify(flow.sender, select.EPOLLIN | select.EPOLLOUT)

    def _turn(self, seconds: float) -> None:
        """Wait that long for something to happen, and take what has."""
        # epoll waits for whole milliseconds, select on the same descriptor for microseconds.
        if seconds > 0.0 and not select.select((self._epoll,), (), (), seconds)[0]:
            return
        for number, event in self._epoll.poll(0):
            flow = self._receivers.get(number)
            if flow is not None:
                self._receive(flow)
                continue
            flow = self._senders[number]
            if event & ~select.EPOLLOUT:
                raise LabError(f"a sender got {flow.sender.recv(4096)!r}")
            flow.flush()
            if not flow.unsent:
                self._epoll.modify(flow.sender, select.EPOLLIN)

    def _receive(self, flow: Flow) -> None:
        scratch, start = self._scratch, flow.arrived
        try:
            arrived = start + flow.receiver.recv_into(scratch)
        except BlockingIOError:
            return
        now = time.monotonic_ns()
        expected = flow.expected
        if arrived == start or not expected or (start == flow.edge and scratch[0] != FIRST_BYTE):
            raise LabError(f"a receiver got {bytes(scratch[: arrived - start][:200])!r}")
        flow.arrived = arrived
        while expected and (edge := expected[0][0]) <= arrived:
            _, due, burst = expected.popleft()
            flow.edge = edge
            self._frames += burst.frames
            self._payload += burst.payload
            self._in_flight -= 1
            if flow.in_flight == self._cap:
                self._ready.append(flow)
            flow.in_flight -= 1
            if due >= self._from:
                self._latencies[burst.kind].append(now - due)
            if edge < arrived and scratch[edge - start] != FIRST_BYTE:
                raise LabError(f"a receiver got {bytes(scratch[edge - start : arrived - start][:200])!r}")

    def _drain(self) -> None:
        """Wait until everything has arrived."""
        end = time.monotonic() + DRAIN_SECONDS
        while self._in_flight:
            if time.monotonic() > end:
                raise LabError(f"{self._in_flight} bursts did not come through")
            self._turn(0.1)

    def _clock(self) -> tuple[float, int, int, float, float]:
        return time.monotonic(), self._frames, self._payload, self._subject(), time.process_time()


def _between(
    before: tuple[float, int, int, float, float], after: tuple[float, int, int, float, float]
) -> Sample:
    return Sample(*(late - early for early, late in zip(before, after, strict=True)))  # type: ignore[arg-type]


def _plan(
    flows: Sequence[Flow], bursts: Sequence[Sequence[Burst]], weights: Sequence[float], seconds: float
) -> Iterator[tuple[int, Flow, Burst]]:
    """(ns after the begin, flow, burst), in order; the same each time."""
    chance = random.Random(1)
    rate, now = sum(weights), 0.0
    numbers, kinds = range(len(flows)), range(len(weights))
    while (now := now + chance.expovariate(rate)) < seconds:
        number = chance.choice(numbers)
        kind = chance.choices(kinds, weights)[0] if len(kinds) > 1 else 0
        yield int(now * 1e9), flows[number], bursts[number][kind]
