"""Base of the local servers of the OpenAI HTTP API: requests, errors in that API's form, start and shutdown.

They serve models that need no provider, listen on loopback only and keep nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any, Final

import orjson
from aiohttp import web

_MAX_BODY_BYTES: Final = 32 * 1024 * 1024


class BadRequest(Exception):
    """Error for a bad request. `param` and `code` are fields of the API's errors."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def create_application(*models: str, about: str) -> web.Application:
    """Return an application that names its models and answers /health; the caller adds the rest."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_error_middleware])

    async def health(_: web.Request) -> web.Response:
        return json_response({"status": "ok", "model": models[0], "about": about})

    async def list_models(_: web.Request) -> web.Response:
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "adiuva"} for name in models]
        return json_response({"object": "list", "data": rows})

    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", list_models)
    return app


async def read_body(request: web.Request, model: str) -> dict[str, Any]:
    """Return the JSON object that a request sent to this model. Raises BadRequest."""
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        raise BadRequest("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    if not isinstance(body.get("model"), str):
        raise BadRequest("model must be given", param="model")
    if body["model"] != model:
        raise BadRequest(
            f"there is no such model here; this address has {model}",
            status=404,
            param="model",
            code="model_not_found",
        )
    return body


def json_response(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


async def serve(app: web.Application, port: int, stop: asyncio.Event) -> None:
    """Serve on 127.0.0.1 until `stop` is set. Prints one line with the address once it listens.

    Raises OSError if the port is taken.
    """
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201
        await stop.wait()
    finally:
        await runner.cleanup()


def run(app: web.Application, *, module: str, description: str, default_port: int = 0) -> None:
    """Run the command line of `python -m MODULE`: serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument(
        "--port", type=int, default=default_port, help="the port on 127.0.0.1; 0 picks a free one"
    )
    port = parser.parse_args().port
    try:
        asyncio.run(_serve_until_signal(app, port))
    except (OSError, OverflowError) as error:
        sys.exit(f"{module} cannot listen on port {port}: {error}")


async def _serve_until_signal(app: web.Application, port: int) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await serve(app, port, stop)


@web.middleware
async def _error_middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except BadRequest as error:
        return _error_response(error.status, str(error), error.param, error.code)
    except web.HTTPException as error:
        return _error_response(error.status, error.reason, None, None)


def _error_response(status: int, message: str, param: str | None, code: str | None) -> web.Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return json_response(body, status)
