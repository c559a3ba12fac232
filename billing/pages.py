"""Pages on which people see the plans, pay, and manage their subscription. They work without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.utils.translation import get_language
from django.views import View
from django.views.decorators.csrf import csrf_protect

from adiuva.accounts.models import PlanName, User
from adiuva.core import number_formats
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import in_their_language, sentence
from billing import entitlements, plan_summary, plans, usage_reports
from billing.payments import subscribing

# The most times that the page after a payment looks again, and the seconds between them.
_MOST_LOOKS = 10
_LOOK_AGAIN_S = 2
_MAX_SEATS = 500


def _page(request: HttpRequest, name: str, *, status: int = 200, **context: Any) -> HttpResponse:
    response = render(request, f"billing/{name}.html", context, status=status)
    response["Cache-Control"] = "no-store"
    return response


def _offers(user: Any) -> list[dict[str, Any]]:
    locale = user.locale if isinstance(user, User) else get_language() or "en"
    return [
        {
            "tier": plan.tier,
            "name": str(plan),
            "price": number_formats.money(plan.price_cents * 10_000, plan.currency, locale),
            "is_free": not plan.price_cents,
            "per_seat": plan.per_seat,
            "limits": _shown(entitlements.plan_limits(plan)),
        }
        for plan in plans.by_tier().values()
    ]


def _shown(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits with the storage as people read it."""
    stored = limits["storage_bytes"]
    return {**limits, "storage": stored and number_formats.size(stored)}


@method_decorator(in_their_language, name="dispatch")
class PricingPage(View):
    """The plans, their prices and what they allow, for everybody."""

    def get(self, request: HttpRequest) -> HttpResponse:
        tier = request.user.tier if isinstance(request.user, User) else ""
        return _page(request, "pricing", offers=_offers(request.user), mine=tier)


@method_decorator([in_their_language, csrf_protect], name="dispatch")
class _SignedInPage(LoginRequiredMixin, View):
    http_method_names = ["get", "post"]

    @property
    def me(self) -> UUID:
        return cast(User, self.request.user).pk


class SubscriptionPage(_SignedInPage):
    """The account's plan, its use, and the actions that it offers."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(request)

    def post(self, request: HttpRequest) -> HttpResponse:
        act, site = request.POST.get("act", ""), request.build_absolute_uri("/").rstrip("/")
        try:
            if act == "cancel":
                said = "cancelled" if subscribing.cancel(user_id=self.me) else "later"
            elif act == "resume":
                said = "resumed" if subscribing.resume(user_id=self.me) else "later"
            elif act == "portal":
                return _leave(request, subscribing.open_portal(user_id=self.me, site=site))
            else:
                seats = request.POST.get("seats", "1")
                seats_wanted = int(seats) if seats.isascii() and seats.isdecimal() and len(seats) < 6 else 0
                url = subscribing.check_out(
                    user_id=self.me,
                    tier=request.POST.get("tier", PlanName.FREE).replace("\0", ""),
                    seats=seats_wanted,
                    site=site,
                )
                return _leave(request, url)
        except AdiuvaError as error:
            return self._show(request, problem=sentence(error.message), status=error.status)
        return redirect(f"{request.path}?done={said}")

    def _show(self, request: HttpRequest, problem: str = "", status: int = 200) -> HttpResponse:
        found = plan_summary.describe(self.me)
        used = [
            {
                "feature": feature,
                "used": usage_reports.amount(feature, used),
                "limit": usage_reports.amount(feature, found["limits"][feature]),
            }
            for feature, used in found["usage"].items()
        ]
        return _page(
            request,
            "subscription",
            status=status,
            plan=found,
            limits=_shown(found["limits"]),
            plan_name=PlanName(found["tier"]).label,
            pending_name=PlanName(found["pending_tier"]).label if found["pending_tier"] else "",
            used=used,
            offers=[offer for offer in _offers(request.user) if not offer["is_free"]],
            is_paid=found["status"] in ("active", "trialing", "past_due"),
            problem=problem,
            said="" if problem else request.GET.get("done", ""),
            max_seats=_MAX_SEATS,
        )


def _leave(request: HttpRequest, url: str) -> HttpResponse:
    """Return a page that leads to Stripe: a form of ours may not be answered with a redirect to another site."""
    return _page(request, "leave", url=url)


class ReturnPage(_SignedInPage):
    """The page to which Stripe sends people after they paid. It asks Stripe, again while the outcome is unknown."""

    http_method_names = ["get"]

    def get(self, request: HttpRequest) -> HttpResponse:
        looks = request.GET.get("looks", "0")
        count = int(looks) if looks.isascii() and looks.isdecimal() and len(looks) < 3 else _MOST_LOOKS
        checkout = request.GET.get("checkout", "")
        is_paid = subscribing.is_paid(user_id=self.me, checkout=checkout)
        again = f"?checkout={checkout}&looks={count + 1}" if not is_paid and count < _MOST_LOOKS else ""
        plan_name = PlanName(plan_summary.describe(self.me)["tier"]).label
        return _page(
            request, "return", is_paid=is_paid, again=again, seconds=_LOOK_AGAIN_S, plan_name=plan_name
        )


class CancelledPage(_SignedInPage):
    """The page to which Stripe sends people who did not pay."""

    http_method_names = ["get"]

    def get(self, request: HttpRequest) -> HttpResponse:
        return _page(request, "cancelled")
