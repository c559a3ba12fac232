"""REST views of developers. Every query starts from the request's user."""

from __future__ import annotations

from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.rest import Done, error_responses, user_id
from billing.marketplace import connected_accounts, developers, earnings, ownership_transfers
from billing.marketplace.developer_serializers import (
    BecomeDeveloperSerializer,
    DeveloperSerializer,
    EarningsSerializer,
    GivePluginSerializer,
    OnboardingSerializer,
    PluginTransferSerializer,
)


class DeveloperView(APIView):
    """You as a developer of plugins."""

    serializer_class = BecomeDeveloperSerializer

    @extend_schema(
        summary="You as a developer",
        operation_id="developer",
        responses={200: DeveloperSerializer, **error_responses(401, 404)},
    )
    def get(self, request: Request) -> Response:
        return Response(developers.describe(developers.of_user(user_id(request))))

    @extend_schema(
        summary="Become a developer",
        operation_id="developer_become",
        request=BecomeDeveloperSerializer,
        responses={201: DeveloperSerializer, **error_responses(400, 401, 409)},
    )
    def post(self, request: Request) -> Response:
        body = BecomeDeveloperSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        made = developers.become(user_id=user_id(request), **body.validated_data)
        return Response(developers.describe(made), status=201)


class OnboardingView(APIView):
    """Your account at Stripe, which gets your shares."""

    @extend_schema(
        summary="Stripe's page for your account",
        operation_id="developer_onboarding",
        request=None,
        responses={200: OnboardingSerializer, **error_responses(401, 403, 404, 503)},
    )
    def post(self, request: Request) -> Response:
        url = connected_accounts.page_of(developer=developers.active(user_id(request)))
        return Response({"url": url}, headers={"Cache-Control": "no-store"})


class EarningsView(APIView):
    """Your earnings with your plugins, and the payments to you."""

    @extend_schema(
        summary="What you earned",
        operation_id="developer_earnings",
        parameters=[
            OpenApiParameter("period", str, description="A month such as 2026-11; all time without it.")
        ],
        responses={200: EarningsSerializer, **error_responses(400, 401, 404)},
    )
    def get(self, request: Request) -> Response:
        mine = developers.of_user(user_id(request))
        period = request.query_params.get("period") or None
        found = {
            "period": period,
            "earnings": earnings.earnings(mine, period),
            "payments": list(earnings.payments(mine)),
        }
        return Response(EarningsSerializer(found).data)


class TransferPluginView(APIView):
    """Give a plugin of yours to another developer: theirs 7 days after they accept, until when you can stop it."""

    serializer_class = GivePluginSerializer

    @extend_schema(
        summary="Give a plugin to another developer",
        operation_id="plugin_give",
        request=GivePluginSerializer,
        responses={201: PluginTransferSerializer, **error_responses(400, 401, 403, 404, 409)},
    )
    def post(self, request: Request, plugin_id: UUID) -> Response:
        body = GivePluginSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        made = ownership_transfers.ask(user_id=user_id(request), plugin_id=plugin_id, **body.validated_data)
        return Response(ownership_transfers.describe(made), status=201)


class PluginTransfersView(APIView):
    """Plugins on their way to you, or from you to others."""

    @extend_schema(
        summary="Plugins that change hands",
        operation_id="plugin_transfers",
        responses={200: PluginTransferSerializer(many=True), **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        return Response(ownership_transfers.of_user(user_id(request)))


class PluginTransferView(APIView):
    """Take a plugin that was offered to you, or stop a transfer."""

    @extend_schema(
        summary="Accept a plugin",
        operation_id="plugin_transfer_accept",
        request=None,
        responses={200: PluginTransferSerializer, **error_responses(401, 403, 404)},
    )
    def post(self, request: Request, transfer_id: UUID) -> Response:
        row = ownership_transfers.accept(user_id=user_id(request), transfer_id=transfer_id)
        return Response(ownership_transfers.describe(row))

    @extend_schema(
        summary="Stop a transfer, or decline it",
        operation_id="plugin_transfer_cancel",
        responses={200: Done, **error_responses(401, 404)},
    )
    def delete(self, request: Request, transfer_id: UUID) -> Response:
        ownership_transfers.cancel(user_id=user_id(request), transfer_id=transfer_id)
        return Response({"ok": True})
