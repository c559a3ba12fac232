"""REST view of a user's use of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.accounts.models import User
from adiuva.core import number_formats
from adiuva.core.rest import error_responses, user_id
from billing import allowances, usage_reports
from billing.models import Purpose
from billing.months import month_of
from billing.usage_serializers import UsageOfMonthSerializer


class UsageView(APIView):
    """What your chats, agents and memory have used of models this month, and what it cost."""

    page_for_people = True

    @extend_schema(
        summary="The use of models this month",
        operation_id="usage",
        responses={200: UsageOfMonthSerializer, **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        user = cast(User, request.user)
        window = month_of(timezone.now(), ZoneInfo(user.timezone))
        found = {
            "window": {"starts_at": window.starts_at, "renews_at": window.ends_at},
            "currency": settings.BUDGET_CURRENCY,
            "added": allowances.additions_to(user.pk, window),
            **allowances.status_of(user.pk, user.tier, window),
            **usage_reports.of_user(user_id(request), window),
        }
        return Response(UsageOfMonthSerializer(found).data)

    def page_figures(self, data: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return money and sizes for the view's page, as people read them."""
        user = cast(User, self.request.user)

        def said(micro: int) -> str:
            return number_formats.money(micro, data["currency"], user.locale)

        limit = data["limit_micro"]
        spent = usage_reports.out_of(said(data["spent_micro"]), None if limit is None else said(limit))
        purposes = [
            (str(usage_reports.PURPOSE_NAMES[Purpose(kind)]), said(used["cost_micro"]))
            for kind, used in data["by_purpose"].items()
        ]
        stored = usage_reports.stored_figures(user.pk, user.tier)
        return [(gettext("Requests to models"), spent), *purposes, *stored]
