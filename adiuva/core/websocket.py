"""A WebSocket consumer base without the stock one's cost a frame.

Channels' AsyncConsumer hops to a shared thread before each message to tend database connections, and waits on two
sources with `asyncio.wait`. One socket's slow query then stalls every other. Here a frame is one `await receive()`
and one call; the channel layer is a task of its own, and the database is reached through adiuva.core.db.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from channels.consumer import AsyncConsumer
from channels.layers import get_channel_layer

from adiuva.core.logging import log


class SocketConsumer(AsyncConsumer):  # type: ignore[misc]  # channels has no types
    """Subclasses give `opened`, `received`, `told` and `ended`. What they raise never closes the socket."""

    # How long a close may wait for a peer that does not read.
    close_s = 10.0

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.channel_name = ""
        self.closing = False
        # Since when sends wait and none gets through, on the loop's clock; 0.0 when none waits.
        self.sending_since = 0.0
        self._waiting_sends = 0
        self._asgi_send: Callable[[dict[str, Any]], Awaitable[None]]
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()

    async def opened(self) -> None:
        """The handshake came; accept or close."""
        raise NotImplementedError

    async def received(self, text: str | None) -> None:
        """One frame; None stands for a binary one."""
        raise NotImplementedError

    async def told(self, message: dict[str, Any]) -> None:
        """One message from the channel layer."""
        raise NotImplementedError

    async def ended(self) -> None:
        """The socket is gone. Nothing may rely on this being called: a killed process calls nothing."""
        raise NotImplementedError

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self.scope, self._asgi_send = scope, send
        if (await receive())["type"] != "websocket.connect":
            return
        try:
            await self._guarded(self.opened)
            while (message := await receive())["type"] == "websocket.receive":
                if not self.closing:
                    try:
                        await self.received(message.get("text"))
                    except Exception:
                        await self._failed("received")
        finally:
            self.closing = True
            if tasks := list(self._tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            await self._guarded(self.ended)

    async def accept(self) -> None:
        await self._asgi_send({"type": "websocket.accept"})

    async def send_text(self, text: str) -> bool:
        """Send one frame. False says that it was not: the peer is gone, as it may be on any network."""
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
            async with asyncio.timeout(self.close_s):
                await self._asgi_send({"type": "websocket.close", "code": code})
        except TimeoutError:
            log.info("socket.aborted", code=code)
            self._abort()
        except (OSError, RuntimeError):
            log.info("socket.close_failed", code=code)

    def _abort(self) -> None:
        """Drop the connection of a peer that takes nothing, not even the close. ASGI has no word for it and would
        wait for ever, with all who are sending; uvicorn's transport has one. daphne never waits for a peer."""
        transport = getattr(getattr(self._asgi_send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()

    async def subscribe(self) -> None:
        """Take a channel of this socket's own, and hand what comes there to `told`."""
        layer = get_channel_layer()
        self.channel_name = await layer.new_channel("socket.")
        self.spawn(self._listen(layer), "listen")

    def unsubscribe(self) -> list[dict[str, Any]]:
        """Give the channel back; returns the messages that were not handed out any more."""
        if not self.channel_name:
            return []
        left: list[dict[str, Any]] = get_channel_layer().end_channel(self.channel_name)
        return left

    async def _listen(self, layer: Any) -> None:
        while True:
            message = await layer.receive(self.channel_name)
            await self._guarded(self.told, message)

    async def _guarded(self, handler: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await handler(*args)
        except Exception:
            await self._failed(handler.__name__)

    async def _failed(self, handler: str) -> None:
        # A fault of ours must not cost the peer its connection; the log has it.
        log.exception("socket.handler_failed", handler=handler)
        await self.failed()

    async def failed(self) -> None:
        """Called after a handler of ours raised."""

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        """Start a task that this socket owns and ends. asyncio itself keeps only weak references."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("socket.task_failed", task=task.get_name(), exc_info=error)
