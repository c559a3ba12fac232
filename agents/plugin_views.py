"""REST views of agent templates: the agent that an installed one offers, and the records it would find."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.db import close_old_connections
from drf_spectacular.utils import extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.rest import error_responses, user_id
from agents import plugin_agents
from agents.journeys.serializers import JourneyFoundSerializer
from agents.plugin_serializers import OfferedAgentSerializer, TryOutSerializer


class OfferedAgentView(APIView):
    """The agent that a template which you installed offers. Save it like any agent, with your choices."""

    @extend_schema(
        summary="What an agent template offers",
        operation_id="plugin_agent",
        responses={200: OfferedAgentSerializer, **error_responses(401, 404, 409)},
    )
    def get(self, request: Request, plugin_id: UUID) -> Response:
        return Response(plugin_agents.offer(user_id(request), plugin_id))


class TryOutView(GenericAPIView[Any]):
    """See what an agent of the template would find in up to three of your documents. Nothing is saved or created."""

    serializer_class = TryOutSerializer

    @extend_schema(
        summary="Try an agent template out",
        operation_id="plugin_agent_try_out",
        request=TryOutSerializer,
        responses={200: JourneyFoundSerializer, **error_responses(400, 401, 404, 409)},
    )
    def post(self, request: Request, plugin_id: UUID) -> Response:
        body = self.get_serializer(data=request.data)
        body.is_valid(raise_exception=True)
        close_old_connections()  # the model may take a while, and others wait for the pool's connections
        found = async_to_sync(plugin_agents.try_out)(
            user_id=user_id(request), plugin_id=plugin_id, **body.validated_data
        )
        return Response(found.model_dump())
