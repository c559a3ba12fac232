"""REST views of payments. Queries start from the request's user; Stripe's requests are checked by signature."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.rest import Done, error_responses, user_id
from billing import plan_summary
from billing.payments import subscribing, webhooks
from billing.payments.serializers import (
    CheckoutAddressSerializer,
    CheckoutSerializer,
    PortalAddressSerializer,
)
from billing.serializers import SubscriptionSerializer


class CheckoutView(APIView):
    """Buy a plan, or change the one that is paid."""

    serializer_class = CheckoutSerializer

    @extend_schema(
        summary="The page on which a plan is paid",
        operation_id="billing_checkout",
        request=CheckoutSerializer,
        responses={200: CheckoutAddressSerializer, **error_responses(400, 401, 409, 502, 503)},
    )
    def post(self, request: Request) -> Response:
        body = CheckoutSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        url = subscribing.check_out(user_id=user_id(request), **body.validated_data)
        return Response({"checkout_url": url}, headers={"Cache-Control": "no-store"})


class PortalView(APIView):
    """Cards, invoices, changes and cancels, on Stripe's page."""

    @extend_schema(
        summary="The page for cards and invoices",
        operation_id="billing_portal",
        request=None,
        responses={200: PortalAddressSerializer, **error_responses(401, 404, 502, 503)},
    )
    def post(self, request: Request) -> Response:
        url = subscribing.open_portal(user_id=user_id(request))
        return Response({"portal_url": url}, headers={"Cache-Control": "no-store"})


class ResumeView(APIView):
    """Take a cancel back."""

    @extend_schema(
        summary="Take a cancel back before the paid period ends",
        operation_id="billing_resume",
        request=None,
        responses={
            200: SubscriptionSerializer,
            202: OpenApiResponse(SubscriptionSerializer, "The payment service is away; it is told later."),
            **error_responses(401, 404, 409, 502),
        },
    )
    def post(self, request: Request) -> Response:
        is_known = subscribing.resume(user_id=user_id(request))
        found = SubscriptionSerializer(plan_summary.describe(user_id(request))).data
        return Response(found, status=200 if is_known else 202)


class WebhookView(APIView):
    """The address to which Stripe sends its events: stored as ids, and acted on later."""

    authentication_classes = []
    permission_classes = [AllowAny]
    throttle_classes = []
    max_body_bytes = webhooks.MAX_BODY_BYTES

    @extend_schema(
        auth=[],
        summary="Events of the payment service",
        operation_id="billing_webhook",
        request={"application/json": {"type": "object"}},
        responses={200: Done, **error_responses(400, 413, 503)},
    )
    def post(self, request: Request) -> Response:
        webhooks.receive(request._request.body, request.headers.get("Stripe-Signature", ""))
        return Response({"ok": True})
