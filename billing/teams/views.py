"""REST views of teams. Every query starts from the request's user."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.rest import Done, error_responses, user_id
from billing.teams import members, seat_changes
from billing.teams.serializers import (
    AcceptSerializer,
    InvitationSerializer,
    InviteSerializer,
    MemberSerializer,
    SeatsSerializer,
    TeamNameSerializer,
    TeamSerializer,
)


def _team(request: Request) -> Any:
    return TeamSerializer(members.describe(user_id(request))).data


class TeamView(APIView):
    """The team of your account."""

    serializer_class = TeamNameSerializer

    @extend_schema(
        summary="The team that you own or are in",
        operation_id="team",
        responses={200: TeamSerializer, **error_responses(401, 404)},
    )
    def get(self, request: Request) -> Response:
        return Response(_team(request))

    @extend_schema(
        summary="Name your team",
        operation_id="team_rename",
        request=TeamNameSerializer,
        responses={200: TeamSerializer, **error_responses(400, 401, 404, 409)},
    )
    def patch(self, request: Request) -> Response:
        body = TeamNameSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        members.rename(owner_id=user_id(request), **body.validated_data)
        return Response(_team(request))

    @extend_schema(
        summary="Leave the team that you are in",
        operation_id="team_leave",
        responses={200: Done, **error_responses(401, 404)},
    )
    def delete(self, request: Request) -> Response:
        members.leave(user_id=user_id(request))
        return Response({"ok": True})


class SeatsView(APIView):
    """The number of seats that you pay for."""

    serializer_class = SeatsSerializer

    @extend_schema(
        summary="Change the number of seats",
        description="More are paid for at once, for the rest of the period; fewer are credited to the next invoice.",
        operation_id="team_seats",
        request=SeatsSerializer,
        responses={
            200: TeamSerializer,
            202: OpenApiResponse(TeamSerializer, "The payment service is away; it is told later."),
            **error_responses(400, 401, 402, 404, 409, 502),
        },
    )
    def put(self, request: Request) -> Response:
        body = SeatsSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        is_known = seat_changes.change(owner_id=user_id(request), number=body.validated_data["seats"])
        return Response(_team(request), status=200 if is_known else 202)


class MembersView(APIView):
    """The members of your team."""

    serializer_class = InviteSerializer

    @extend_schema(
        summary="The members and invitations of your team",
        operation_id="team_members",
        responses={200: MemberSerializer(many=True), **error_responses(401, 404)},
    )
    def get(self, request: Request) -> Response:
        return Response(_team(request)["members"])

    @extend_schema(
        summary="Invite somebody to your team",
        operation_id="team_invite",
        request=InviteSerializer,
        responses={201: InvitationSerializer, **error_responses(400, 401, 402, 404, 409)},
    )
    def post(self, request: Request) -> Response:
        body = InviteSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        made = members.invite(owner_id=user_id(request), **body.validated_data)
        shown = {"id": made.pk, "email": made.address, "role": "member", "state": made.state,
                 "since": made.invited_at, "link": members.link_of(made)}  # fmt: skip
        return Response(InvitationSerializer(shown).data, status=201, headers={"Cache-Control": "no-store"})


class MemberView(APIView):
    """A member of your team."""

    @extend_schema(
        summary="Remove a member, or take an invitation back",
        operation_id="team_remove",
        responses={200: Done, **error_responses(401, 404)},
    )
    def delete(self, request: Request, id: UUID) -> Response:
        members.remove(owner_id=user_id(request), membership_id=id)
        return Response({"ok": True})


class AcceptView(APIView):
    """Take a seat."""

    serializer_class = AcceptSerializer

    @extend_schema(
        summary="Accept an invitation to a team",
        operation_id="team_accept",
        request=AcceptSerializer,
        responses={200: TeamSerializer, **error_responses(400, 401, 402, 404, 409)},
    )
    def post(self, request: Request) -> Response:
        body = AcceptSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        members.accept(user_id=user_id(request), token=body.validated_data["invitation"])
        return Response(_team(request))
