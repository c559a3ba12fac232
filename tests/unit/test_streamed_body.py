"""Bodies that are handed on as they arrive: chunks cut anywhere, readers that stop anywhere, connections that end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adiuva.llm import errors, stream_coalescing
from adiuva.llm.streamed_body import ChunkDecoder, StreamedBody, StreamingProtocol

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

extensions = st.sampled_from([b"", b";a=b", b" "])
sizes = st.sampled_from(["{:x}", "{:X}", "000{:x}"])
chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=12)
trailers = st.lists(st.sampled_from([b"A: b\r\n", b"Expires: never\r\n"]), max_size=2)


@st.composite
def encoded(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and how it is sent."""
    pieces = draw(chunks)
    wire = b"".join(
        draw(sizes).format(len(piece)).encode() + draw(extensions) + b"\r\n" + piece + b"\r\n"
        for piece in pieces
    )
    return b"".join(pieces), wire + b"0\r\n" + b"".join(draw(trailers)) + b"\r\n"


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(at)]


cuts = st.lists(st.integers(0, 2000), max_size=20)


@given(encoded(), cuts, st.binary(max_size=5))
def test_a_chunked_body_may_be_cut_anywhere(
    body: tuple[bytes, bytes], places: list[int], behind: bytes
) -> None:
    whole, wire = body
    decoder = ChunkDecoder()
    assert b"".join(decoder.feed(part) for part in cut(wire, places)) == whole
    assert decoder.ended
    assert decoder.feed(behind) == b"" and decoder.rest == behind


@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([b"5\r\n", b"\r\n", b"0\r\n", b"-1\r\nx\r\n"]), max_size=8
    )
)
def test_what_is_not_chunked_is_refused_or_waited_for(parts: list[bytes]) -> None:
    decoder, other = ChunkDecoder(), ChunkDecoder()

    def all_of(one: ChunkDecoder, pieces: Sequence[bytes]) -> bytes | None:
        try:
            return b"".join(map(one.feed, pieces))
        except ValueError:
            return None

    # However it is cut, it means the same.
    wire = b"".join(parts)
    assert all_of(decoder, parts) == all_of(other, [wire[at : at + 1] for at in range(len(wire))])


@pytest.mark.parametrize(
    "wire",
    [
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b"\r\n",
        b"fffffffff\r\n",
        b"5\r\nhello!\r\n",
        b"5" * 9000,
    ],
)
def test_a_size_that_is_none_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError):
        ChunkDecoder().feed(wire)
    decoder = ChunkDecoder()
    with pytest.raises(ValueError):
        for place in range(len(wire)):
            decoder.feed(wire[place : place + 1])


class Line(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.is_paused = self.is_closed = False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As uvloop does, keep the method that data is given to."""
        assert isinstance(protocol, asyncio.Protocol)
        self.give = protocol.data_received


class Connection:
    """A connection without a socket, on which an answer has begun."""

    def __init__(self) -> None:
        self.line = Line()
        self.protocol = StreamingProtocol(asyncio.get_running_loop())
        self.line.set_protocol(self.protocol)
        self.protocol.connection_made(self.line)
        self.protocol.set_response_params()

    async def begin(self, *parts: bytes, silence_s: float = 60, max_bytes: int = 1 << 20) -> StreamedBody:
        for part in parts:
            self.protocol.data_received(part)
        _, self.content = await self.protocol.read()
        body = StreamedBody(self.protocol, self.content, silence_s=silence_s, max_bytes=max_bytes)
        assert body.begin()
        return body


def taker(got: list[bytes], wakes: Callable[[bytes], bool] = lambda piece: False) -> Callable[[bytes], bool]:
    def take(piece: bytes) -> bool:
        got.append(piece)
        return wakes(piece)

    return take


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@given(
    encoded(),
    cuts,
    st.integers(0, 6),
    st.lists(st.sampled_from(["read", "read one", "cancel", "wait"]), max_size=24),
    st.sampled_from(["end", "lost"]),
)
def test_no_piece_is_lost_or_comes_twice_whatever_the_reader_does(
    body: tuple[bytes, bytes], places: list[int], first: int, steps: list[str], ends: str
) -> None:
    whole, wire = body
    if ends == "lost":
        wire = wire[:-2]

    async def play() -> None:
        parts = cut(wire, places)
        early = first % len(parts)
        connection = Connection()
        streamed = await connection.begin(HEAD, *parts[:early])
        got: list[bytes] = []
        reading: asyncio.Task[bool] | None = None
        takes = {"read": taker(got), "read one": taker(got, lambda piece: True)}
        todo = [*steps]
        for part in parts[early:]:
            step = todo.pop() if todo else "wait"
            if step in takes and (reading is None or reading.done()):
                reading = asyncio.create_task(streamed.pass_on(takes[step]))
            elif step == "cancel" and reading is not None:
                reading.cancel()
            if len(todo) % 2:
                await settle()
            connection.protocol.data_received(part)
        if ends == "lost":
            connection.protocol.connection_lost(None)
        if reading is not None:
            with suppress(asyncio.CancelledError, aiohttp.ClientPayloadError):
                await reading
        if ends == "end":
            while await streamed.pass_on(takes["read"]):
                pass
            assert (
                connection.content.is_eof() and not connection.protocol.should_close
            )  # for the next request
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await streamed.pass_on(takes["read"])
        assert b"".join(got) == whole
        streamed.close()

    asyncio.run(play())


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def test_a_reader_is_given_pieces_without_being_woken() -> None:
    connection = Connection()
    body = await connection.begin(HEAD)
    got: list[bytes] = []
    reading = asyncio.create_task(body.pass_on(taker(got, lambda piece: piece == b"stop")))
    await settle()
    for piece in (b"one", b"two", b"stop", b"three"):
        connection.protocol.data_received(chunk(piece))
    assert got == [b"one", b"two", b"stop"], "before any task has run"
    assert await reading is True
    connection.protocol.data_received(b"0\r\n\r\n")
    assert await body.pass_on(taker(got)) is False
    assert got[3:] == [b"three"]


async def test_what_the_taker_raises_is_raised_in_its_task() -> None:
    connection = Connection()
    body = await connection.begin(HEAD)

    def take(piece: bytes) -> bool:
        raise LookupError(piece)

    reading = asyncio.create_task(body.pass_on(take))
    await settle()
    connection.protocol.data_received(chunk(b"one"))
    with pytest.raises(LookupError):
        await reading


async def test_silence_counts_from_the_last_piece_and_only_while_somebody_waits() -> None:
    connection = Connection()
    body = await connection.begin(HEAD, silence_s=0.2)
    await asyncio.sleep(0.3)  # nobody waits
    got: list[bytes] = []
    reading = asyncio.create_task(body.pass_on(taker(got)))
    for _ in range(4):
        await asyncio.sleep(0.08)
        connection.protocol.data_received(chunk(b"x"))
    assert not reading.done()
    with pytest.raises(TimeoutError):
        await reading
    assert len(got) == 4


async def test_a_body_that_nobody_reads_stops_the_connection_and_goes_on() -> None:
    connection = Connection()
    body = await connection.begin(HEAD)
    sent = 0
    while not connection.line.is_paused:
        connection.protocol.data_received(chunk(b"x" * 10_000))
        sent += 10_000
    assert sent < 300_000
    got = 0

    def take(piece: bytes) -> bool:
        nonlocal got
        got += len(piece)
        return False

    reading = asyncio.create_task(body.pass_on(take))
    await settle()
    assert got == sent and not connection.line.is_paused
    connection.protocol.data_received(b"0\r\n\r\n")
    assert await reading is False


async def test_a_body_that_is_too_long_or_not_chunked_is_given_up() -> None:
    connection = Connection()
    body = await connection.begin(HEAD, max_bytes=100)
    connection.protocol.data_received(chunk(b"x" * 101))
    with pytest.raises(errors.ModelGarbled):
        await body.pass_on(lambda piece: False)
    assert connection.protocol.should_close
    connection = Connection()
    body = await connection.begin(HEAD)
    connection.protocol.data_received(b"nonsense\r\n")
    with pytest.raises(aiohttp.ClientPayloadError):
        await body.pass_on(lambda piece: False)
    assert connection.protocol.should_close


async def test_a_connection_that_said_more_than_its_answer_is_not_used_again() -> None:
    connection = Connection()
    body = await connection.begin(HEAD)
    connection.protocol.data_received(b"0\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert await body.pass_on(lambda piece: False) is False
    assert connection.protocol.should_close


@pytest.mark.parametrize("head", [HEAD.replace(b"200", b"500"), HEAD + chunk(b"x" * 200_000)])
async def test_some_bodies_stay_with_aiohttp(head: bytes) -> None:
    connection = Connection()
    connection.protocol.data_received(head)
    _, content = await connection.protocol.read()
    options: dict[str, Any] = {"silence_s": 1, "max_bytes": 1}
    assert not StreamedBody(connection.protocol, content, **options).begin()


async def test_where_many_pieces_come_they_are_handed_on_together_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_coalescing, "_WINDOW_S", 0.02)
    connections = [Connection() for _ in range(4)]
    bodies = [await connection.begin(HEAD) for connection in connections]
    got: list[list[bytes]] = [[] for _ in bodies]
    readings = [
        asyncio.create_task(body.pass_on(taker(found))) for body, found in zip(bodies, got, strict=True)
    ]
    await settle()
    together, sent = 0, 0
    async with asyncio.timeout(10):
        while together < 50:  # of these, no code has seen any when they came
            before = sum(map(len, got))
            for connection in connections:
                connection.line.give(chunk(b"%d " % sent))
            together += sum(map(len, got)) == before
            sent += 1
            if not sent % 5:
                await asyncio.sleep(0.001)
    late = Connection()
    late_body = await late.begin(HEAD, chunk(b"late"))
    late.line.give(chunk(b"r"))
    found: list[bytes] = []
    assert await late_body.pass_on(taker(found, lambda piece: piece == b"r"))
    assert b"".join(found) == b"later"
    connections[0].line.give(b"0\r\n\r\n")
    assert await readings[0] is False
    assert "data_received" not in vars(connections[0].protocol), "the connection is for other requests again"
    connections[1].protocol.connection_lost(None)
    with pytest.raises(aiohttp.ClientPayloadError):
        await readings[1]
    bodies[2].close()
    readings[2].cancel()
    connections[2].line.give(chunk(b"too late"))
    await asyncio.sleep(0.1)  # few come by now
    connections[3].line.give(chunk(b"at once"))
    assert got[3].pop() == b"at once"
    whole = b"".join(b"%d " % number for number in range(sent))
    for place in (0, 1, 3):
        assert b"".join(got[place]) == whole
    connections[3].line.give(b"0\r\n\r\n")
    assert await readings[3] is False
