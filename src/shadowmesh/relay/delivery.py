"""What a relay sends to one client: frames, in the order of each sender, as far as the client takes them.

A frame goes by the first way that is open: to the kernel; behind what waits in the transport, up to
`write_buffer_size`; to the outbox. Short frames that came with one read go to the kernel with one call: for
them the call is most of the work.

When much waits for a client, whoever sends it more is told to pause before anything has to be lost, and to go
on when little waits. That is a hint: at full speed a sender does better to wait than to lose, and all other
senders and clients go on as they do.
"""

from __future__ import annotations

from asyncio import get_running_loop
from math import inf
from random import randrange
from time import monotonic
from typing import TYPE_CHECKING

from shadowmesh.net import READ_PER_TURN
from shadowmesh.net.sendbuffer import SendBuffer
from shadowmesh.net.websocket import WebSocket, binary_frame
from shadowmesh.relay.counters import MEASURED_EVERY
from shadowmesh.relay.outbox import FRAME_COST, Outbox
from shadowmesh.wire.control import Pause, Resume, encode
from shadowmesh.wire.frame import MAX_FRAME

if TYPE_CHECKING:
    from shadowmesh.relay.server import Server

SHORT = 8192
"""Bytes up to which a frame is copied to wait for the end of a read: picows copies so much in any case."""
CONTROL_ROOM = 32 * 1024
"""Bytes of control messages that may wait for a client, behind the frames that its socket has not taken."""
PAUSE_ABOVE, RESUME_BELOW = 2 << 20, 1 << 20
"""Bytes in the outbox. Above, there is to be room for what is under way while the sender hears of it; below,
enough for the client to go on with until more comes."""
PAUSE_EVERY = 0.5
"""Seconds after which a sender that goes on is told again."""


class Receiver(WebSocket):
    """A client, as far as it is sent to."""

    __slots__ = (
        "_batch",
        "_batched",
        "_behind",
        "_blocked",
        "_buffer",
        "_counters",
        "_outbox",
        "_paused",
        "_room",
        "_server",
        "_waiting",
        "bytes_out",
        "frames_out",
    )

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.frames_out = self.bytes_out = 0
        self._server = server
        self._counters = server.counters
        self._batch: list[bytes] = []
        """Short frames of the read that goes on, as the kernel gets them."""
        self._batched = 0
        """Their bytes, as `bytes_out` counts them."""
        self._blocked = False
        """Bytes wait in the transport: its socket takes no more."""
        self._room = 0
        """Bytes of frames that may join those, before the outbox is used."""
        self._behind = 0
        """What has joined them, as `Memory` counts it."""
        self._waiting: list[float] = []
        """When those of the measured frames were read whose last bytes the kernel has not taken yet."""
        self._outbox: Outbox | None = None
        self._buffer: SendBuffer | None = None
        """Of one that was sent much."""
        self._paused: dict[tuple[Receiver, bytes], float] | None = None
        """When which sender was told to pause what it sends to which address of this client."""

    def deliver(self, frame: memoryview, read_at: float, sender: Receiver) -> None:
        """Send a frame to this client, at the end of the read at the latest; or keep a copy.

        read_at: monotonic time at which the turn of the event loop began that read it.
        """
        batch, size = self._batch, len(frame)
        if size <= SHORT and not self._blocked:
            if not batch:
                self._server.batches.append((self, read_at, sender))
            batch.append(binary_frame(frame))
            self._batched += size
            return
        if batch:
            self.flush(read_at, sender)
        if size > READ_PER_TURN:
            sender.bulk = True
        if self.closing:
            self.lose("receiver_left")
        elif self._blocked:
            self._wait(frame, read_at, sender)
        else:
            self.send_binary(frame)
            self._sent(1, size, read_at)

    def flush(self, read_at: float, sender: Receiver) -> None:
        """Send the short frames that came for this client with the read that ends, if there are any still."""
        batch, size = self._batch, self._batched
        self._batch, self._batched = [], 0
        try:
            if self.closing:
                self.lose("receiver_left", frames=len(batch))
            elif self._blocked:  # by something else that was sent to it meanwhile
                for frame in batch:
                    self._wait(memoryview(frame)[2 if frame[1] < 126 else 4 :], read_at, sender)
            elif batch:
                self.write_frames(batch)
                self._sent(len(batch), size, read_at)
        except Exception as error:
            self._counters.drops["internal_error"] += len(batch)
            self.fail(error)

    def _sent(self, frames: int, size: int, read_at: float) -> None:
        """Count, and measure the latency: of all that wait for the kernel to take them, of some others."""
        self.frames_out += frames
        self.bytes_out += size
        if self._blocked:
            self._waiting.extend([read_at] * frames)
            return
        counters = self._counters
        counters.unmeasured -= frames
        while counters.unmeasured < 0:
            counters.unmeasured += randrange(1, 2 * MEASURED_EVERY)
            now = monotonic()
            counters.latency.record(now - read_at, now, MEASURED_EVERY)

    def _wait(self, frame: memoryview, read_at: float, sender: Receiver) -> None:
        """Keep a copy of a frame while the kernel takes no more."""
        if self._room > 0 and self._server.memory.has_room(len(frame)):
            self._send_behind(frame, read_at)
            return
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox(self._server.memory, self)
        outbox.push(bytes(frame), read_at, sender)
        if outbox.bytes > PAUSE_ABOVE:
            self._pause(sender, bytes(frame[1:17]), read_at)

    def _pause(self, sender: Receiver, address: bytes, now: float) -> None:
        if self._paused is None:
            self._paused = {}
        if now - self._paused.get((sender, address), -inf) >= PAUSE_EVERY:
            self._paused[sender, address] = now
            sender.advise(Pause(address))

    def _resume(self) -> None:
        paused, self._paused = self._paused, None
        for sender, address in paused or ():
            sender.advise(Resume(address))

    def may_answer(self) -> bool:
        """Whether so little waits for the socket that a control message may be added."""
        return self.write_buffer_size() <= self._server.config.write_buffer_size + MAX_FRAME + CONTROL_ROOM

    def advise(self, hint: Pause | Resume) -> None:
        """Tell this client to send less to an address, or as much as it likes.

        Also when its socket takes no more, as that may be for a moment only; but without limit it may not
        cost memory.
        """
        if self.closing:
            return
        text = encode(hint)
        if self._blocked:
            size = len(text) + FRAME_COST
            if not (self.may_answer() and self._server.memory.has_room(size)):
                return
            self._behind += size
            self._server.memory.used += size
        self.send_text(text)

    def _record(self, read_at: float) -> None:
        now = monotonic()
        self._counters.latency.record(now - read_at, now)

    def _send_behind(self, frame: memoryview | bytes, read_at: float) -> None:
        """Give the transport a frame to send behind those that wait there."""
        size = len(frame)
        self._room -= size
        self._behind += size + FRAME_COST
        self._server.memory.used += size + FRAME_COST
        self.send_binary(frame)
        self._sent(1, size, read_at)

    def _free_behind(self) -> None:
        self._server.memory.used -= self._behind
        self._behind = 0

    def pause_writing(self) -> None:
        """The kernel takes no more: frames wait from here on."""
        self._blocked = True
        self._send_buffer().blocked()
        self._room = self._server.config.write_buffer_size - self.write_buffer_size()

    def _send_buffer(self) -> SendBuffer:
        if self._buffer is None:
            self._buffer = SendBuffer(self.tcp_socket(), get_running_loop())
        return self._buffer

    def resume_writing(self) -> None:
        """The kernel has taken everything: send what waits until it is full again."""
        self._blocked = False
        self._send_buffer().unblocked()
        self._free_behind()
        for read_at in self._waiting:
            self._record(read_at)
        self._waiting.clear()
        # Of a relay that stops nobody is to slow down any more: what waits goes out, however late.
        outbox, now = self._outbox, -inf if self._server.draining else monotonic()
        while outbox and not self.closing and (self._room > 0 or not self._blocked):
            item = outbox.pop(now)
            if item is None:
                break
            frame, read_at = item
            try:
                if self._blocked:
                    self._send_behind(frame, read_at)  # as much room as it had
                    continue
                self.send_binary(frame)
            except Exception as error:
                self._counters.drops["internal_error"] += 1
                self.fail(error)
                continue
            self.frames_out += 1
            self.bytes_out += len(frame)
            if self._blocked:
                self._waiting.append(read_at)
            else:
                self._record(read_at)
        if not outbox:
            self._outbox = None
        if self._paused and (outbox is None or outbox.bytes < RESUME_BELOW):
            self._resume()

    def fail(self, error: Exception) -> None:
        """A bug of ours has met this connection: report it, and end no other."""
        self._report(error)

    def lose(self, reason: str, destination: bytes = b"", frames: int = 1) -> None:
        """Frames of this client, or for it, are lost."""
        self._counters.drops[reason] += frames
