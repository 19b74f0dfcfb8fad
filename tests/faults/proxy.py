"""A TCP proxy on loopback that stands between clients and one broker, and does to their traffic what networks do.

Clients meet it at the address that the broker advertises (`Cluster(proxied=True)`). Faults are switched on and off from
the test; connections outlive them unless the fault is their end. It knows just enough of Kafka's protocol to see where
a request begins and what kind it is, so that one kind can get lost while all others pass.

    proxy.delay_s = 0.5            every frame arrives so much later
    proxy.bytes_per_s = 50_000     as a thin line
    proxy.black_hole()             nothing arrives, nothing is refused
    proxy.lose_requests(PRODUCE)   these are never answered, and did not happen
    proxy.lose_answers(END_TXN)    these are never answered, and did happen
    proxy.answer_with(END_TXN, 51) the next one happens, and its answer says that it failed with this code
    proxy.damage(b"marker")        answers that carry this have a bit turned over in it
    proxy.half_close()             the broker's half of each connection ends, the client's does not
    proxy.refuse()                 connections are reset, new ones too
    proxy.heal()
"""

import asyncio
import contextlib
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

PRODUCE, FETCH, OFFSET_COMMIT, HEARTBEAT, ADD_OFFSETS, END_TXN = 0, 1, 8, 12, 25, 26
"""Kinds of requests (api keys of Kafka's protocol)."""

_FLEXIBLE = {PRODUCE: 9, HEARTBEAT: 4, ADD_OFFSETS: 3, END_TXN: 3}
"""From which version on answers of a kind have tagged fields in their head; older ones are not asked for."""
_PRODUCE_BY_ID = 13  # from this version on, topics have ids instead of names

LOOPBACK = "127.0.0.1"
_MOST_WAITING = 1000  # frames of one direction of one connection


class _Link:
    """One client's connection, and the one to the broker that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.client, self.broker = client, broker
        self.asked: dict[
            int, tuple[int, int]
        ] = {}  # correlation id -> kind and version, without answer so far
        self.half_closed = False

    def reset(self) -> None:
        """End both, as if one of them had crashed."""
        for writer in (self.client, self.broker):
            writer.transport.abort()


class Proxy:
    """Listens on `port` for the broker at `upstream`, in a thread of its own."""

    def __init__(self, port: int, upstream: int) -> None:
        self.delay_s = 0.0
        self.bytes_per_s = float("inf")
        self.lost: Counter[int] = Counter()
        """Requests, or answers to requests, of each kind that got lost on the way."""
        self._port, self._upstream = port, upstream
        self._requests_lost: frozenset[int] = frozenset()
        self._answers_lost: frozenset[int] = frozenset()
        self._errors: dict[int, int] = {}
        self._damaged: bytes | None = None
        self._refusing = False
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- faults

    def black_hole(self) -> None:
        """Hold everything back. What is held arrives when it is over, as TCP would send it again."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def lose_requests(self, *kinds: int) -> None:
        """Requests of these kinds do not arrive."""
        self._requests_lost = frozenset(kinds)

    def lose_answers(self, *kinds: int) -> None:
        """Requests of these kinds arrive; their answers do not."""
        self._answers_lost = frozenset(kinds)

    def answer_with(self, kind: int, code: int) -> None:
        """The next request of this kind is carried out, and answered with an error; it is counted in `lost`."""
        self._errors[kind] = code

    def damage(self, marker: bytes) -> None:
        """Turn a bit of every `marker` that the broker sends."""
        self._damaged = marker

    def half_close(self) -> None:
        """The broker says no more on the connections that there are; it still listens."""

        def close() -> None:
            for link in self._links:
                link.half_closed = True
                with contextlib.suppress(OSError):
                    link.client.write_eof()

        self._loop.call_soon_threadsafe(close)

    def reset(self) -> None:
        """Reset all connections; new ones are welcome."""
        self._loop.call_soon_threadsafe(self._reset)

    def refuse(self) -> None:
        """Reset all connections, and each new one."""
        self._refusing = True
        self.reset()

    def heal(self) -> None:
        """Everything passes again."""
        self.delay_s, self.bytes_per_s = 0.0, float("inf")
        self._requests_lost = self._answers_lost = frozenset()
        self._errors.clear()
        self._damaged, self._refusing = None, False
        self._loop.call_soon_threadsafe(self._passing.set)

    # -- the traffic

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self._port)

    async def _close(self) -> None:
        self._server.close()
        self._reset()
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reset(self) -> None:
        for link in self._links:
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            from_broker, to_broker = await asyncio.open_connection(LOOPBACK, self._upstream)
        except OSError:  # the broker is away
            writer.transport.abort()
            return
        link = _Link(writer, to_broker)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(reader, to_broker, lambda frame: self._request(link, frame)))
                ways.create_task(self._carry(from_broker, writer, lambda frame: self._answer(link, frame)))
        except* (OSError, asyncio.IncompleteReadError):  # one side has gone: so has the other
            pass
        finally:
            link.reset()
            self._links.discard(link)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fate: Callable[[bytes], bytes | None],
    ) -> None:
        """Frames one way: each in its time, through whatever is in force when it is due."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_WAITING)

        async def take() -> None:
            while True:
                size = await reader.readexactly(4)
                frame = await reader.readexactly(struct.unpack(">i", size)[0])
                await waiting.put((self._loop.time(), frame))

        async def give() -> None:
            while True:
                came_s, frame = await waiting.get()
                await asyncio.sleep(came_s + self.delay_s - self._loop.time())
                await self._passing.wait()
                kept = fate(frame)
                if kept is not None:
                    await asyncio.sleep(len(kept) / self.bytes_per_s)
                    writer.write(struct.pack(">i", len(kept)) + kept)
                    await writer.drain()

        async with asyncio.TaskGroup() as halves:
            halves.create_task(take())
            halves.create_task(give())

    def _request(self, link: _Link, frame: bytes) -> bytes | None:
        kind, version, correlation = struct.unpack_from(">hhi", frame)
        if kind in self._requests_lost:
            self.lost[kind] += 1
            return None
        link.asked[correlation] = kind, version
        return frame

    def _answer(self, link: _Link, frame: bytes) -> bytes | None:
        kind, version = link.asked.pop(struct.unpack_from(">i", frame)[0], (None, 0))
        if link.half_closed:
            return None
        if kind is not None and kind in self._answers_lost:
            self.lost[kind] += 1
            return None
        if kind in self._errors:
            self.lost[kind] += 1
            return _with_error(kind, version, frame, self._errors.pop(kind))
        if self._damaged and kind == FETCH:
            turned = bytes([self._damaged[0] ^ 1]) + self._damaged[1:]
            return frame.replace(self._damaged, turned)
        return frame

    def _do(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(10.0)


def _with_error(kind: int, version: int, frame: bytes, code: int) -> bytes:
    """The answer with another error code: the only one it has, or that of its first partition."""
    assert version >= _FLEXIBLE[kind], f"version {version} of kind {kind} is too old"
    at = 5  # correlation id, no tagged fields
    if (
        kind == PRODUCE
    ):  # topics [name or id, partitions [number, error]]; lengths are below 128: one byte each
        at += 1
        at += 16 if version >= _PRODUCE_BY_ID else frame[at]
        at += 1 + 4
    else:
        at += 4  # throttle time
    return frame[:at] + struct.pack(">h", code) + frame[at + 2 :]
