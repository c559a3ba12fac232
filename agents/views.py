"""REST views of agents, runs and journeys. Every query starts from the request's user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from asgiref.sync import async_to_sync
from django.db import close_old_connections
from django.urls import reverse
from django.utils.translation import gettext
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.browsable_api import PageAction, undo_action
from adiuva.core.errors import Invalid, Text
from adiuva.core.paging import TOTAL_COUNT, PreparedList
from adiuva.core.representation import rows_of
from adiuva.core.rest import Done, Problem, error_responses, user_id
from adiuva.devices import outbox
from agents import journal, plan_limits, run_watches, runs, services, undo
from agents.agent_types import catalog
from agents.journeys import services as journeys
from agents.journeys.serializers import (
    JourneyAnswerSerializer,
    JourneyMovedOnSerializer,
    JourneyQuestionSerializer,
    JourneySerializer,
    JourneyStartSerializer,
)
from agents.models import Agent, Run
from agents.run_serializers import (
    EventSerializer,
    RunDetailSerializer,
    RunSerializer,
    StartedSerializer,
    StartSerializer,
    UndoneSerializer,
    UndoStoppedSerializer,
)
from agents.serializers import (
    CatalogSerializer,
    CloudAgentSerializer,
    KeptAgentsChoiceSerializer,
    KeptAgentsSerializer,
    LocalAgentSerializer,
)

_MAX_EVENTS: Final = 1_000
_LOCAL: Final = PreparedList(lambda user_id: Agent.objects.of(user_id).local().select_related("user"))
_CLOUD: Final = PreparedList(
    lambda user_id: Agent.objects.of(user_id).cloud().select_related("user", "connection")
)
_RUNS: Final = PreparedList(lambda user_id: Run.objects.of(user_id))
_RUNS_OF_AGENT: Final = PreparedList(
    lambda user_id, agent_id: Run.objects.of(user_id).filter(agent_ref=agent_id)
)


class CatalogView(APIView):
    """The kinds of agents there are, each with a JSON Schema of its configuration."""

    @extend_schema(
        summary="The kinds of agents there are",
        responses={200: CatalogSerializer(many=True), **error_responses(401)},
        operation_id="agents_catalog",
    )
    def get(self, request: Request) -> Response:
        return Response(catalog())


class _AgentViewSet(viewsets.ModelViewSet[Agent]):
    page_for_people = True
    queryset = Agent.objects.none()
    agents: PreparedList[Agent]

    def get_queryset(self) -> Any:
        mine = self.agents.of(user_id(self.request))
        return mine if self.action == "list" else mine.rows

    def page_actions(self, data: Mapping[str, Any]) -> list[PageAction]:
        run = reverse("agent-run", kwargs={"agent_id": data["id"]}) if "id" in data else ""
        if not run:
            return []
        return [
            PageAction("run", gettext("Run now"), run),
            PageAction("dry_run", gettext("Dry run"), f"{run}?dry_run=true"),
        ]

    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes only the given fields, as PATCH does: deployed clients send a part of the configuration."""
        return super().update(request, *args, **kwargs | {"partial": True})

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self.get_queryset())
        assert page is not None
        return self.get_paginated_response(rows_of(self.get_serializer(), page))


@extend_schema_view(
    list=extend_schema(
        summary="Your agents over local folders, newest first",
        parameters=[TOTAL_COUNT],
        responses={200: LocalAgentSerializer(many=True), **error_responses(400, 401)},
    ),
    create=extend_schema(
        summary="Make an agent", responses={201: LocalAgentSerializer, **error_responses(400, 401, 402)}
    ),
    retrieve=extend_schema(
        summary="One agent", responses={200: LocalAgentSerializer, **error_responses(401, 404)}
    ),
    update=extend_schema(
        summary="Change some of an agent's configuration; what is not named stays",
        request=LocalAgentSerializer(partial=True),
        responses={200: LocalAgentSerializer, **error_responses(400, 401, 402, 404)},
    ),
    partial_update=extend_schema(
        summary="Change some of an agent's configuration",
        responses={200: LocalAgentSerializer, **error_responses(400, 401, 402, 404)},
    ),
)
class LocalAgentViewSet(_AgentViewSet):
    """Agents that read folders on a device and find tasks, notes and dates in them."""

    serializer_class = LocalAgentSerializer
    agents = _LOCAL

    def perform_create(self, serializer: Any) -> None:
        serializer.instance = services.create_local(
            user_id=user_id(self.request), values=serializer.validated_data
        )

    def perform_update(self, serializer: Any) -> None:
        serializer.instance = services.update(agent=serializer.instance, values=serializer.validated_data)

    @extend_schema(
        summary="Delete an agent; its run history stays", responses={200: Done, **error_responses(401, 404)}
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        services.delete(agent=self.get_object())
        return Response({"ok": True})


@extend_schema_view(
    list=extend_schema(
        summary="Your agents over mailboxes and channels, newest first",
        parameters=[TOTAL_COUNT],
        responses={200: CloudAgentSerializer(many=True), **error_responses(400, 401)},
    ),
    create=extend_schema(
        summary="Make a cloud agent", responses={201: CloudAgentSerializer, **error_responses(400, 401, 402)}
    ),
    retrieve=extend_schema(
        summary="One cloud agent", responses={200: CloudAgentSerializer, **error_responses(401, 404)}
    ),
    update=extend_schema(
        summary="Change some of a cloud agent's configuration; what is not named stays",
        request=CloudAgentSerializer(partial=True),
        responses={200: CloudAgentSerializer, **error_responses(400, 401, 402, 404)},
    ),
    partial_update=extend_schema(
        summary="Change some of a cloud agent's configuration",
        responses={200: CloudAgentSerializer, **error_responses(400, 401, 402, 404)},
    ),
)
class CloudAgentViewSet(_AgentViewSet):
    """Agents that read an account you have connected. They run without a device; what they find waits for one."""

    serializer_class = CloudAgentSerializer
    agents = _CLOUD

    def perform_create(self, serializer: Any) -> None:
        serializer.instance = services.create_cloud(
            user_id=user_id(self.request), values=serializer.validated_data
        )

    def perform_update(self, serializer: Any) -> None:
        serializer.instance = services.update_cloud(
            agent=serializer.instance, values=serializer.validated_data
        )

    @extend_schema(
        summary="Delete a cloud agent; its run history stays",
        responses={200: Done, **error_responses(401, 404)},
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        services.delete(agent=self.get_object())
        return Response({"ok": True})


class KeepView(GenericAPIView[Any]):
    """Choose which agents run where your plan has no room for all that are enabled.

    The others are held: they lose nothing, and run again when there is room.
    """

    serializer_class = KeptAgentsChoiceSerializer

    @extend_schema(
        summary="Choose which agents run on a smaller plan",
        responses={200: KeptAgentsSerializer, **error_responses(400, 401, 402, 404)},
        operation_id="agents_keep",
    )
    def post(self, request: Request) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        mine = user_id(request)
        plan_limits.keep(user_id=mine, agent_ids=serializer.validated_data["agent_ids"])
        enabled = Agent.objects.of(mine).filter(enabled=True).values_list("pk", "held_by_plan")
        found: dict[str, list[UUID]] = {"running": [], "held": []}
        for pk, is_held in enabled:
            found["held" if is_held else "running"].append(pk)
        return Response(found)


class StartRunView(APIView):
    """Run an agent now. If its device is offline, the run waits for it.

    A dry run reads, asks the model and creates nothing: the run itself shows what was found.
    """

    page_for_people = True
    page_row_detail = "run-detail"

    @extend_schema(
        summary="Run an agent now",
        request=None,
        parameters=[StartSerializer],
        responses={202: StartedSerializer, **error_responses(400, 401, 404, 409, 429)},
        operation_id="agents_run",
    )
    def post(self, request: Request, agent_id: UUID) -> Response:
        agent = services.get_agent(user_id(request), agent_id)
        query = StartSerializer(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        options = dict(query.validated_data)
        conversation_id, follow_up = options.pop("conversation_id", None), options.pop("follow_up", True)
        place = None
        if conversation_id is not None:
            place = run_watches.place_in(user_id(request), conversation_id, follow_up=follow_up)
        run = runs.start(agent=agent, place=place, **options)
        return Response({"ok": True, "run_id": str(run.pk)}, status=202)


@extend_schema_view(
    list=extend_schema(
        summary="Your runs, newest first",
        parameters=[OpenApiParameter("agent_id", UUID, description="only this agent's"), TOTAL_COUNT],
        responses={200: RunSerializer(many=True), **error_responses(400, 401)},
    ),
    retrieve=extend_schema(
        summary="One run with its journal",
        parameters=[
            OpenApiParameter(
                "after", int, description="The journal's lines after this `seq`; at most 1,000 come at once."
            )
        ],
        responses={200: RunDetailSerializer, **error_responses(400, 401, 404)},
    ),
)
class RunViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Run]):
    """What agents did: how far a run is, what it found, what went wrong."""

    page_for_people = True
    page_without_form = ("cancel", "undo")
    serializer_class = RunSerializer
    queryset = Run.objects.none()

    def page_actions(self, data: Mapping[str, Any]) -> list[PageAction]:
        if "state" not in data:
            return []
        if data["state"] in Run.LIVE:
            return [PageAction("cancel", gettext("Cancel"), reverse("run-cancel", kwargs={"pk": data["id"]}))]
        if data["undone_at"] or data["dry_run"]:
            return []
        has_changed = Run.objects.of(user_id(self.request)).filter(pk=data["id"], changes__isnull=False)
        if data["items_created"] or data["records_waiting"] or has_changed.exists():
            return [undo_action(reverse("run-undo", kwargs={"pk": data["id"]}))]
        return []

    def get_queryset(self) -> Any:
        mine = user_id(self.request)
        if self.action != "list":
            return Run.objects.of(mine)
        if agent_id := self.request.query_params.get("agent_id"):
            try:
                return _RUNS_OF_AGENT.of(mine, UUID(agent_id))
            except ValueError:
                raise Invalid("agent_id is not a UUID", fields={"agent_id": ["Not a UUID."]}) from None
        return _RUNS.of(mine)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self.get_queryset())
        assert page is not None and self.paginator is not None
        return self.paginator.get_paginated_response(rows_of(RunSerializer(context=_run_context(page)), page))

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        run = self.get_object()
        after = _whole_number(request, "after", default=0)
        context = _run_context([run]) | {"journal": journal.read(run, after=after)}
        return Response(RunDetailSerializer(run, context=context).data)

    @extend_schema(
        summary="A run's journal: what happened, in order",
        parameters=[
            OpenApiParameter(
                "after", int, description="The events after this `seq`; from the first if not given."
            ),
            OpenApiParameter(
                "limit", int, description=f"How many at most, from 1 to {_MAX_EVENTS}; that is the default."
            ),
        ],
        filters=False,
        responses={200: EventSerializer(many=True), **error_responses(400, 401, 404)},
    )
    @action(detail=True, methods=["get"], pagination_class=None)
    def events(self, request: Request, pk: str | None = None) -> Response:
        """Events never change; the last `seq` is the next `after`. While a run is in progress, `agent_progress`
        over the socket says that there are more."""
        run = self.get_object()
        after = _whole_number(request, "after", default=0)
        limit = _whole_number(request, "limit", default=_MAX_EVENTS, least=1, most=_MAX_EVENTS)
        return Response(EventSerializer(journal.read(run, after=after, most=limit), many=True).data)

    @extend_schema(
        summary="Cancel a run", request=None, responses={200: RunSerializer, **error_responses(401, 404)}
    )
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str | None = None) -> Response:
        run = runs.cancel(run=self.get_object())
        return Response(RunSerializer(run, context=_run_context([run])).data)

    @extend_schema(
        summary="Undo a run: delete what it created",
        request=None,
        responses={
            200: UndoneSerializer,
            **error_responses(401, 404, 409),
            503: OpenApiResponse(UndoStoppedSerializer, "The device is not connected, or went."),
            504: OpenApiResponse(UndoStoppedSerializer, "The device did not answer in time."),
        },
    )
    @action(detail=True, methods=["post"])
    def undo(self, request: Request, pk: str | None = None) -> Response:
        """Records that you have edited or approved since stay, and so does what something else refers to. The run's
        device has to be connected. May be asked for again: the answer sums up what has become of all records.

        The sources stay read: the next run brings nothing back, unless a source or the agent's configuration changes.
        """
        run = self.get_object()
        close_old_connections()  # it may take a while, and others wait for the pool's connections
        done = async_to_sync(undo.undo)(run=run)
        return Response(UndoneSerializer(done.body()).data)


_NO_ANSWER: Final = {
    502: OpenApiResponse(Problem, "The model's answer is of no use. Nothing has changed: try again."),
    **error_responses(503),
    504: OpenApiResponse(Problem, "The model did not answer in time. Nothing has changed: try again."),
}


class StartJourneyView(GenericAPIView[Any]):
    """Make an agent's configuration in a conversation, or change that of an agent you have.

    You are asked at most five questions. Send each answer to `journey/message`.
    """

    serializer_class = JourneyStartSerializer

    @extend_schema(
        summary="Begin a conversation about an agent",
        operation_id="agents_journey_start",
        responses={200: JourneyQuestionSerializer, **error_responses(400, 401, 402, 404), **_NO_ANSWER},
    )
    def post(self, request: Request) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        close_old_connections()  # the model may take a while, and others wait for the pool's connections
        session = async_to_sync(journeys.start)(
            user_id=user_id(request),
            kind=data["agent_type"],
            agent_id=data.get("agent_id"),
        )
        return Response(session.body())


class JourneyMessageView(GenericAPIView[Any]):
    """Answer the question at hand, or go back to the one before.

    With `done` come the configuration and what it finds in up to three of your documents. Nothing is saved: make an
    agent of it, or change the one you have. A conversation is forgotten an hour after its last message.
    """

    serializer_class = JourneyAnswerSerializer

    @extend_schema(
        summary="Answer a question about an agent",
        operation_id="agents_journey_message",
        responses={
            200: JourneySerializer,
            **error_responses(400, 401, 402, 404),
            409: OpenApiResponse(JourneyMovedOnSerializer, "Another message was taken first."),
            **_NO_ANSWER,
        },
    )
    def post(self, request: Request) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        close_old_connections()
        session = async_to_sync(journeys.answer)(user_id=user_id(request), **serializer.validated_data)
        return Response(session.body())


def _run_context(page: Sequence[Run]) -> dict[str, Any]:
    """Return the data that serializers of runs show beside their rows, in a query or two."""
    return {"problems": journal.problems_of(page), "left": outbox.count_outstanding([run.pk for run in page])}


def _whole_number(
    request: Request, name: str, *, default: int, least: int = 0, most: int = 10**18 - 1
) -> int:
    """Return a whole number from the query string. Raises Invalid."""
    raw = request.query_params.get(name) or str(default)
    if not (raw.isascii() and raw.isdigit() and len(raw) < 19 and least <= int(raw) <= most):
        within = Text("Not a whole number from {least} to {most}.", least=least, most=most)
        raise Invalid(
            Text("{name} is out of bounds", name=name),
            fields={name: [within if least else "Not a whole number."]},
        )
    return int(raw)
