"""A user's devices over REST."""

from __future__ import annotations

import contextlib
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.http import Http404
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from adiuva.accounts import services as accounts
from adiuva.core.errors import NotFound
from adiuva.core.paging import TOTAL_COUNT
from adiuva.core.rest import Done, error_responses, user_id
from adiuva.devices import presence
from adiuva.devices.models import Device
from adiuva.devices.protocol import Close
from adiuva.devices.reply_routing import close_message
from adiuva.devices.serializers import DeviceSerializer


@extend_schema_view(
    list=extend_schema(
        summary="Your devices, the one seen last first",
        parameters=[TOTAL_COUNT],
        responses={200: DeviceSerializer(many=True), **error_responses(400, 401)},
    ),
    retrieve=extend_schema(
        summary="One device", responses={200: DeviceSerializer, **error_responses(401, 404)}
    ),
)
class DeviceViewSet(
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet[Device],
):
    """The installations you signed in on, online or last seen."""

    page_for_people = True
    serializer_class = DeviceSerializer
    queryset = Device.objects.none()

    def get_queryset(self) -> Any:
        return Device.objects.of(user_id(self.request)).with_online().seen_last_first()

    @extend_schema(
        summary="Forget a device and sign it out; the data on it stays",
        responses={200: Done, **error_responses(401, 404)},
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        device: Device = self.get_object()
        if device.session_id is not None:
            with contextlib.suppress(NotFound):  # it was signed out before, or its session expired
                accounts.end_session(user=device.user, session_id=device.session_id)
        try:
            channel = presence.forget_device(device)
        except Device.DoesNotExist:
            raise Http404 from None  # another request was first
        if channel:
            # The socket would close by itself within seconds, because the session is over; this is only sooner.
            with contextlib.suppress(ConnectionError):
                async_to_sync(get_channel_layer().send)(channel, close_message(Close.NOT_AUTHENTICATED))
        return Response({"ok": True})
