"""Agents and runs over REST. Every query starts from the request's user."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.api import TOTAL_COUNT, Done, problems, user_id
from adiuva.errors import Invalid
from agents import journal, runs, verbs
from agents.catalog import CATALOG
from agents.models import Agent, Run
from agents.serializers import (
    CatalogSerializer,
    LocalAgentSerializer,
    RunDetailSerializer,
    RunSerializer,
    StartedSerializer,
)


class CatalogView(APIView):
    """The kinds of agents there are, each with a JSON Schema of its configuration."""

    @extend_schema(
        summary="The kinds of agents there are",
        responses={200: CatalogSerializer(many=True), **problems(401)},
        operation_id="agents_catalog",
    )
    def get(self, request: Request) -> Response:
        return Response(CATALOG)


@extend_schema_view(
    list=extend_schema(
        summary="Your agents over local folders, newest first",
        parameters=[TOTAL_COUNT],
        responses={200: LocalAgentSerializer(many=True), **problems(400, 401)},
    ),
    create=extend_schema(
        summary="Make an agent", responses={201: LocalAgentSerializer, **problems(400, 401)}
    ),
    retrieve=extend_schema(summary="One agent", responses={200: LocalAgentSerializer, **problems(401, 404)}),
    update=extend_schema(
        summary="Replace an agent's configuration",
        responses={200: LocalAgentSerializer, **problems(400, 401, 404)},
    ),
    partial_update=extend_schema(
        summary="Change some of an agent's configuration",
        responses={200: LocalAgentSerializer, **problems(400, 401, 404)},
    ),
)
class LocalAgentViewSet(viewsets.ModelViewSet[Agent]):
    """Agents that read folders on a device and find tasks, notes and dates in them."""

    serializer_class = LocalAgentSerializer
    queryset = Agent.objects.none()

    def get_queryset(self) -> Any:
        return Agent.objects.of(user_id(self.request)).local().select_related("user")

    def perform_create(self, serializer: Any) -> None:
        serializer.instance = verbs.create_local(
            user_id=user_id(self.request), values=serializer.validated_data
        )

    def perform_update(self, serializer: Any) -> None:
        serializer.instance = verbs.change(agent=serializer.instance, values=serializer.validated_data)

    @extend_schema(
        summary="Delete an agent; its run history stays", responses={200: Done, **problems(401, 404)}
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        verbs.delete(agent=self.get_object())
        return Response({"ok": True})


class StartRunView(APIView):
    """Run an agent now. If its device is offline, the run waits for it."""

    @extend_schema(
        summary="Run an agent now",
        request=None,
        responses={202: StartedSerializer, **problems(401, 404, 409)},
        operation_id="agents_run",
    )
    def post(self, request: Request, agent_id: UUID) -> Response:
        run = runs.start(agent=verbs.of_user(user_id(request), agent_id))
        return Response({"ok": True, "run_id": str(run.pk)}, status=202)


@extend_schema_view(
    list=extend_schema(
        summary="Your runs, newest first",
        parameters=[OpenApiParameter("agent_id", UUID, description="only this agent's"), TOTAL_COUNT],
        responses={200: RunSerializer(many=True), **problems(400, 401)},
    ),
    retrieve=extend_schema(
        summary="One run with its journal",
        parameters=[
            OpenApiParameter(
                "after", int, description="The journal's lines after this `seq`; at most 1,000 come at once."
            )
        ],
        responses={200: RunDetailSerializer, **problems(400, 401, 404)},
    ),
)
class RunViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Run]):
    """What agents did: how far a run is, what it found, what went wrong."""

    serializer_class = RunSerializer
    queryset = Run.objects.none()

    def get_queryset(self) -> Any:
        found = Run.objects.of(user_id(self.request))
        if self.action == "list" and (agent_id := self.request.query_params.get("agent_id")):
            try:
                found = found.filter(agent_ref=UUID(agent_id))
            except ValueError:
                raise Invalid("agent_id is not a UUID", fields={"agent_id": ["Not a UUID."]}) from None
        return found

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self.get_queryset())
        assert page is not None and self.paginator is not None
        context = {"problems": journal.problems(page)}
        return self.paginator.get_paginated_response(RunSerializer(page, many=True, context=context).data)

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        run = self.get_object()
        after = request.query_params.get("after") or "0"
        if not (after.isascii() and after.isdigit() and len(after) < 19):
            raise Invalid("after is not the number of a line", fields={"after": ["Not a whole number."]})
        context = {"problems": journal.problems([run]), "journal": journal.read(run, after=int(after))}
        return Response(RunDetailSerializer(run, context=context).data)

    @extend_schema(summary="Cancel a run", request=None, responses={200: RunSerializer, **problems(401, 404)})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str | None = None) -> Response:
        run = runs.cancel(run=self.get_object())
        return Response(RunSerializer(run, context={"problems": journal.problems([run])}).data)
