"""Handler of HTTP requests that takes each through all of Django in one thread.

For each signal and each part of the middleware without async code, Django's own handler goes to another thread and
back, sixteen times for a request of ours, and starts threads for it. Here the whole way, from the first signal to the
closing of the response, is one visit to a thread that stays for later requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from typing import IO, Any, Final, TypeVar

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.conf import settings
from django.core import signals
from django.core.exceptions import RequestAborted
from django.core.handlers import base
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.db import close_old_connections, connections, reset_queries
from django.http import FileResponse, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, set_script_prefix

T = TypeVar("T")

# At most this many requests are answered at once, because some wait minutes for a model or a device. Others wait.
_MOST_THREADS: Final = 500
# How many paths are cached with their view, and the longest path that is cached.
_MOST_PATHS: Final = 2_000
_LONGEST_PATH: Final = 200
# The handler checks for a client that leaves only after this time: most answers are there by then, and need no task
# beside them.
_PATIENCE_S: Final = 0.05


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="http")


class ThreadedHandler(ASGIHandler):
    def __init__(self) -> None:
        base.BaseHandler.__init__(self)
        # Each request leaves its thread without a connection, so that the next one need not look for one.
        signals.request_started.disconnect(close_old_connections)
        if not settings.DEBUG:
            signals.request_started.disconnect(reset_queries)
        self.load_middleware(is_async=False)
        self._answer_in_thread = _in_thread(self._answer)
        self._views: dict[tuple[str, str], ResolverMatch] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        with closing(body):
            await self._serve(scope, body, receive, send)

    async def _serve(self, scope: Any, body: IO[bytes], receive: Any, send: Any) -> None:
        """Answer a request. A client that leaves ends the wait for its answer; a turn that a view waits for goes on."""
        answering = asyncio.current_task()
        assert answering is not None
        leaving: asyncio.Task[None] | None = None
        is_answered = False

        def stop(_: asyncio.Task[None]) -> None:
            if not is_answered:
                answering.cancel()

        def look() -> None:
            nonlocal leaving
            leaving = asyncio.create_task(self._leave(receive))
            leaving.add_done_callback(stop)

        looking = asyncio.get_running_loop().call_later(_PATIENCE_S, look)
        try:
            await self._answer_and_send(scope, body, send)
        except asyncio.CancelledError:
            if leaving is None or not leaving.done() or answering.uncancel():  # the server ends
                raise
            leaving.result()  # raises unless the client has left
        finally:
            is_answered = True
            looking.cancel()
            if leaving is not None:
                leaving.cancel()

    async def _leave(self, receive: Any) -> None:
        """Return when the client has left."""
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _answer_and_send(self, scope: Any, body: IO[bytes], send: Any) -> None:
        response = await self._answer_in_thread(scope, body)
        if not response.streaming:
            await self.send_response(response, send)
            return
        try:
            async with ThreadSensitiveContext():  # serves iterators that are not asynchronous: those of files
                await self.send_response(response, send)
        finally:
            await _in_thread(response.close)()

    def _answer(self, scope: Any, body: IO[bytes]) -> HttpResponseBase:
        """Answer as Django's WSGI handler does. The caller must close a response that streams."""
        signals.request_started.send(sender=type(self), scope=scope)
        if prefix := get_script_prefix(scope):
            set_script_prefix(prefix)
        request, response = self.create_request(scope, body)
        if request is not None:
            response = self.get_response(request)
        assert response is not None
        response._handler_class = type(self)  # type: ignore[attr-defined]  # the sender of request_finished
        if isinstance(response, FileResponse):
            response.block_size = self.chunk_size
        if response.streaming:
            connections.close_all()
        else:
            response.close()
        return response

    def resolve_request(self, request: HttpRequest) -> ResolverMatch:
        """Return the view of a path, which never changes. All routes are searched once for a path that comes again."""
        place = settings.ROOT_URLCONF, request.path_info
        found = self._views.get(place)
        if found is None or hasattr(request, "urlconf"):
            found = super().resolve_request(request)
            if not hasattr(request, "urlconf") and len(request.path_info) < _LONGEST_PATH:
                if len(self._views) >= _MOST_PATHS:
                    self._views.clear()
                self._views[place] = found
        request.resolver_match = found
        return found


def _in_thread(function: Callable[..., T]) -> Callable[..., Awaitable[T]]:
    # Views can use async_to_sync, which comes back to this loop.
    return sync_to_async(function, thread_sensitive=False, executor=_threads())
