"""REST views of plans and of an account's own plan. Every query starts from the request's user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.accounts import views as accounts
from adiuva.core.rest import error_responses, user_id
from billing import plan_summary, plans, usage_reports
from billing.payments import subscribing
from billing.serializers import MeSerializer, PlanSerializer, SubscriptionSerializer


class MeView(accounts.MeView):
    """The account that is signed in."""

    serializer_class = MeSerializer

    @extend_schema(responses={200: MeSerializer, **error_responses(401)})
    def get(self, request: Request) -> Response:
        return super().get(request)

    @extend_schema(responses={200: MeSerializer, **error_responses(400, 401)})
    def patch(self, request: Request) -> Response:
        """Change the time zone or the locale."""
        return super().patch(request)


class PlansView(APIView):
    """The existing plans, the smallest first."""

    authentication_classes = []
    permission_classes = [AllowAny]

    @extend_schema(
        auth=[],
        summary="What the plans cost and allow",
        operation_id="billing_plans",
        responses={200: PlanSerializer(many=True)},
    )
    def get(self, request: Request) -> Response:
        return Response(PlanSerializer(list(plans.by_tier().values()), many=True).data)


class SubscriptionView(APIView):
    """The plan of your account."""

    @extend_schema(
        summary="Your plan, what it allows, and how much of it you use",
        operation_id="billing_subscription",
        responses={200: SubscriptionSerializer, **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        return Response(_described(request))

    def page_figures(self, data: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return sizes for the view's page, as people read them."""
        return usage_reports.stored_figures(user_id(self.request), data["tier"])

    @extend_schema(
        summary="Cancel the subscription at the end of what is paid",
        operation_id="billing_cancel",
        responses={
            200: SubscriptionSerializer,
            202: OpenApiResponse(SubscriptionSerializer, "The payment service is away; it is told later."),
            **error_responses(401, 404, 409, 502),
        },
    )
    def delete(self, request: Request) -> Response:
        is_known = subscribing.cancel(user_id=user_id(request))
        return Response(_described(request), status=200 if is_known else 202)


def _described(request: Request) -> Any:
    return SubscriptionSerializer(plan_summary.describe(user_id(request))).data
