"""The page on which people see the use of models by their work this month, and its cost. It works without scripts."""

from __future__ import annotations

from typing import Any, Final, cast
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext
from django.views import View

from adiuva.accounts.models import User
from adiuva.core import number_formats
from adiuva.core.language import in_their_language
from billing import allowances, entitlements, usage_reports
from billing.models import Purpose
from billing.months import month_of

# People are told at these shares of the budget, as they are in a chat.
MARKS: Final = (80, 100)


@method_decorator(in_their_language, name="dispatch")
class UsagePage(LoginRequiredMixin, View):
    http_method_names = ["get"]

    def get(self, request: HttpRequest) -> HttpResponse:
        response = render(request, "billing/usage.html", _shown(cast(User, request.user)))
        response["Cache-Control"] = "no-store"
        return response


def _shown(user: User) -> dict[str, Any]:
    """Return the template's values, in the current language."""
    window = month_of(timezone.now(), ZoneInfo(user.timezone))
    found = usage_reports.of_user(user.pk, window)
    limits = entitlements.limits_of(user.tier)
    names = usage_reports.names_of_agents(user.pk, [each["agent_id"] for each in found["by_agent"]])

    def row(name: Any, used: dict[str, Any]) -> dict[str, Any]:
        counts = {
            each: number_formats.count(used[each]) for each in ("calls", "input_tokens", "output_tokens")
        }
        return {"name": name, "cost": _money(used["cost_micro"], user), **counts}

    return {
        "first_day": window.first_day,
        "last_day": window.last_day,
        "renews_on": window.ends_at.date(),
        "total": row("", found),
        "estimated": _money(found["estimated_micro"], user) if found["estimated_micro"] else "",
        "unpriced": found["unpriced_calls"],
        "budget": _budget(user, allowances.status_of(user.pk, user.tier, window)),
        "added": [
            {"amount": _money(each.micro, user), "reason": each.reason, "day": each.created_at}
            for each in allowances.additions_to(user.pk, window)
        ],
        "kinds": [
            row(usage_reports.PURPOSE_NAMES[Purpose(kind)], used)
            for kind, used in found["by_purpose"].items()
            if used["calls"]
        ],
        "agents": [
            row(names.get(each["agent_id"]) or gettext("An agent that was deleted"), each)
            for each in found["by_agent"]
        ],
        "models": [row(each["model"], each) for each in found["by_model"]],
        "stored": usage_reports.stored(user.pk, user.tier),
        "requests_per_minute": limits["requests_per_minute"],
    }


def _money(micro: int, user: User) -> str:
    return number_formats.money(micro, settings.BUDGET_CURRENCY, user.locale)


def _budget(user: User, status: dict[str, int | None]) -> dict[str, Any] | None:
    limit, percent = status["limit_micro"], status["used_percent"]
    if limit is None or percent is None:
        return None
    return {
        "spent": _money(status["spent_micro"] or 0, user),
        "reserved": _money(status["reserved_micro"], user) if status["reserved_micro"] else "",
        "limit": _money(limit, user),
        "percent": percent,
        "shown": min(percent, 100),
        "passed": max((mark for mark in MARKS if percent >= mark), default=0),
    }
