"""Base class of WebSocket consumers that costs less per frame than Channels' own.

Channels' AsyncConsumer hops to a shared thread before each message to tend database connections, and waits on two
sources with `asyncio.wait`. One socket's slow query then stalls every other. Here a frame is one `await receive()`
and one call; the channel layer calls the socket, and the database is reached through adiuva.core.db.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from channels.consumer import AsyncConsumer
from channels.layers import get_channel_layer

from adiuva.core.channel_layer import Message
from adiuva.core.logging import log_failure

log = structlog.get_logger(__name__)


# More than 15 methods: ASGI's and Channels' own, and the sending that subclasses share.
class SocketConsumer(AsyncConsumer):  # type: ignore[misc]  # channels has no types
    """Consumer of one socket. Subclasses define `connect`, `receive`, `channel_message` and `disconnect`.

    An error in one of them is logged and never closes the socket.
    """

    # How long a close may wait for a peer that does not read.
    close_timeout_s = 10.0

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.channel_name = ""
        self.closing = False
        # The close code of the connection, once it has ended; 1005 if there was none.
        self.peer_close_code = 1005
        # The loop's time since when no send has got through although some wait; 0.0 when none waits.
        self.sending_since = 0.0
        self._waiting_sends = 0
        self._asgi_send: Callable[[dict[str, Any]], Awaitable[None]]
        # Sends the text of a frame at once, if the server can. Returns False if nothing was sent: then `send_in_turn`
        # waits until it can be, or says that the peer is gone.
        self.push: Callable[[bytes], bool] = _cannot_push
        # Sends a frame in the same way, together with all other frames of this turn of the loop.
        self.push_soon: Callable[[bytes], bool] = _cannot_push
        self._tasks: set[asyncio.Task[object]] = set()
        # Channel messages that wait until the present one is handled.
        self._messages: deque[Message] | None = None
        self._handling = False
        # True once the server has offered the next frame to `take_text`, which left it to `receive`.
        self._was_offered = False
        self._loop = asyncio.get_running_loop()

    # ── For subclasses to define ────────────────────────────────────────────────────────────────────────

    async def connect(self) -> None:
        """Accept or close, once the handshake has arrived."""
        raise NotImplementedError

    def take_text(self, text: str) -> bool:
        """Handle a frame at once, if that needs no waiting. Returns whether it did; if not, `receive` gets it."""
        return False

    async def receive(self, text: str | None) -> None:
        """Handle a frame that was not taken at once; None stands for a binary one."""
        raise NotImplementedError

    def take_message(self, message: Message) -> bool:
        """Handle a message on this socket's channel at once, if that needs no waiting. Returns whether it did."""
        return False

    async def channel_message(self, message: Message) -> None:
        """Handle a message on this socket's channel that was not taken at once."""
        raise NotImplementedError

    async def disconnect(self) -> None:
        """Clean up, since the socket is gone. Nothing may rely on this call: a killed process does not make it."""
        raise NotImplementedError

    async def handler_failed(self, error: Exception) -> None:
        """React to `error`, which one of the methods above has raised and which has been logged."""

    # ── The socket's life ───────────────────────────────────────────────────────────────────────────────

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self.scope, self._asgi_send = scope, send
        server = getattr(send, "__self__", None)
        self.push = getattr(server, "push", _cannot_push)
        self.push_soon = getattr(server, "push_soon", _cannot_push)
        if (await receive())["type"] != "websocket.connect":
            return
        try:
            await self._run_handler(self.connect)
            scope["headers"] = []  # thousands of sockets would keep them
            if server is not None and hasattr(server, "take"):
                server.take = self._offer_text
            while (message := await receive())["type"] == "websocket.receive":
                text = message.get("text")
                was_offered, self._was_offered = self._was_offered, False
                if not self.closing and (text is None or was_offered or not self._take_text(text)):
                    try:  # not `_run_handler`: this is the hot path
                        await self.receive(text)
                    except Exception as error:
                        log_failure("socket.handler_failed", error, logger=log, handler="receive")
                        await self.handler_failed(error)
            self.peer_close_code = message.get("code") or self.peer_close_code
        finally:
            self.closing = True
            if tasks := list(self._tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            await self._run_handler(self.disconnect)

    def _offer_text(self, text: str) -> bool:
        """Offer a frame to `take_text`. The server calls this where a frame arrives and none waits; a frame that is not
        taken is the next message."""
        is_taken = self._take_text(text)
        self._was_offered = not is_taken
        return is_taken

    def _take_text(self, text: str) -> bool:
        if self.closing:
            return False
        try:
            return self.take_text(text)
        except Exception as error:  # `receive` then tells the peer of it
            log_failure("socket.handler_failed", error, logger=log, handler="take_text")
            return False

    async def _run_handler(self, handler: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await handler(*args)
        except Exception as error:  # a fault of ours must not cost the peer its connection
            log_failure("socket.handler_failed", error, logger=log, handler=handler.__name__)
            await self.handler_failed(error)

    # ── The peer ────────────────────────────────────────────────────────────────────────────────────────

    async def accept(self) -> None:
        await self._asgi_send({"type": "websocket.accept"})

    async def send_text(self, text: str) -> bool:
        """Send one frame. Returns False if it was not sent because the peer is gone."""
        if not (self.closing or self._waiting_sends) and self.push_soon(text.encode()):
            return True
        return await self.send_in_turn(text)

    async def send_in_turn(self, text: str) -> bool:
        """Send a frame that cannot be pushed. Returns False if the peer is gone."""
        if self.closing:
            return False
        if not self._waiting_sends:
            self.sending_since = self._loop.time()
        self._waiting_sends += 1
        try:
            await self._asgi_send({"type": "websocket.send", "text": text})
        except (OSError, RuntimeError):
            log.info("socket.send_failed", channel=self.channel_name)
            return False
        finally:
            self._waiting_sends -= 1
            self.sending_since = self._loop.time() if self._waiting_sends else 0.0
        return True

    async def close(self, code: int) -> None:
        if self.closing:
            return
        self.closing = True
        try:
            async with asyncio.timeout(self.close_timeout_s):
                await self._asgi_send({"type": "websocket.close", "code": code})
        except TimeoutError:
            log.info("socket.aborted", code=code)
            self._abort()
        except (OSError, RuntimeError):
            log.info("socket.close_failed", code=code)

    def _abort(self) -> None:
        """Drop the connection of a peer that reads nothing, not even the close frame.

        ASGI has no message for this and would wait forever, together with everyone who is sending. uvicorn's
        transport has a method for it; daphne never waits for a peer.
        """
        transport = getattr(getattr(self._asgi_send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()

    # ── The channel layer ───────────────────────────────────────────────────────────────────────────────

    async def subscribe(self) -> None:
        """Open a channel for this socket. Its messages go to `take_message` or `channel_message`, in their order."""
        self.channel_name = await get_channel_layer().new_channel("socket.", self._message_arrived)

    def unsubscribe(self) -> list[Message]:
        """Close the socket's channel. Returns the messages that had arrived and were not handled."""
        if self.channel_name:
            get_channel_layer().end_channel(self.channel_name)
        left, self._messages = list(self._messages or ()), None
        return left

    def _message_arrived(self, message: Message) -> None:
        if not self._handling and self.take_message(message):
            return
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)
        if not self._handling:
            self._handling = True
            self.spawn(self._handle_messages(), "channel messages")

    async def _handle_messages(self) -> None:
        try:
            while self._messages:
                await self._run_handler(self.channel_message, self._messages.popleft())
        finally:
            self._handling = False

    # ── Tasks ───────────────────────────────────────────────────────────────────────────────────────────

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        """Start a task that ends with this socket. The socket keeps it alive: asyncio holds only weak references."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log_failure("socket.task_failed", error, logger=log, task=task.get_name())


def _cannot_push(text: bytes) -> bool:
    return False
