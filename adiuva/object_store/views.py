"""Base class of views that take large bodies. It reads them where no ASGI route in front of Django does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.accounts.models import User
from adiuva.object_store import bodies
from adiuva.object_store.bodies import WRITE_BYTES, Begin


class StreamedBodies(APIView):
    """Base of views with large bodies. `body_streams`: what takes the body of a request, by method."""

    body_streams: ClassVar[Mapping[str, Begin]] = {}

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Choose the renderer whatever the client accepts: bytes are what they are, and refusals are JSON."""
        return super().perform_content_negotiation(request, force=True)

    def take_body(self, request: Request, **parameters: Any) -> Response:
        user = request.user
        assert isinstance(user, User)
        given = bodies.Request(user.pk, user.tier, parameters, request.headers)
        body = self.body_streams[str(request.method)](given)
        try:
            while data := request._request.read(WRITE_BYTES):
                body.write(data)
            answer = body.end()
        except BaseException as error:
            body.break_off(error)
            raise
        return Response(answer.body, status=answer.status, headers=answer.headers)
