"""The page on which people see their team, invite, accept, and change seats. It works without scripts."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_protect

from adiuva.accounts.models import User
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import in_their_language, sentence
from billing.payments import subscribing
from billing.teams import members, seat_changes
from billing.teams.members import InvitationInvalid, NoTeam


@method_decorator([in_their_language, csrf_protect], name="dispatch")
class TeamPage(LoginRequiredMixin, View):
    """The team that an account owns or is in; with `?invitation=`, the one to which it is invited."""

    http_method_names = ["get", "post"]

    @property
    def me(self) -> UUID:
        return cast(User, self.request.user).pk

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(request)

    def post(self, request: HttpRequest) -> HttpResponse:
        act, token = request.POST.get("act", ""), request.POST.get("invitation", "")
        try:
            said = self._act(request, act, token)
        except AdiuvaError as error:
            return self._show(request, problem=sentence(error.message), status=error.status, token=token)
        if act == "invite":
            return self._show(request, link=said)
        return redirect(f"{request.path}?done={said}")

    def _act(self, request: HttpRequest, act: str, token: str) -> str:
        """Carry out a button's action. Returns the message about it, or the link of a new invitation."""
        site = request.build_absolute_uri("/").rstrip("/")
        if act == "invite":
            made = members.invite(owner_id=self.me, email=request.POST.get("email", ""))
            return members.link_of(made, site)
        if act == "accept":
            members.accept(user_id=self.me, token=token)
            return "joined"
        if act == "leave":
            members.leave(user_id=self.me)
            return "left"
        if act == "rename":
            members.rename(owner_id=self.me, name=request.POST.get("name", ""))
            return "renamed"
        if act == "seats":
            number = request.POST.get("seats", "")
            wanted = int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else 0
            return "seats" if seat_changes.change(owner_id=self.me, number=wanted) else "later"
        try:
            members.remove(owner_id=self.me, membership_id=UUID(act.removeprefix("remove ")))
        except ValueError:
            raise members.NoSuchMember from None
        return "removed"

    def _show(
        self, request: HttpRequest, *, problem: str = "", status: int = 200, token: str = "", link: str = ""
    ) -> HttpResponse:
        token = token or request.GET.get("invitation", "")
        team: Any = None
        invitation: Any = None
        try:
            team = members.describe(self.me)
        except NoTeam:
            pass
        if token:
            try:
                invitation = members.read_invitation(token)
            except InvitationInvalid as error:
                problem, status = problem or error.message, max(status, error.status)
        response = render(
            request,
            "billing/team.html",
            {
                "team": team,
                "invitation": invitation,
                "token": token,
                "link": link,
                "problem": problem,
                "said": "" if problem else request.GET.get("done", ""),
                "pays_alone": subscribing.pays(user_id=self.me)
                and (team is None or team["role"] == "member"),
            },
            status=status,
        )
        response["Cache-Control"] = "no-store"
        # The link of an invitation is in the address. With "no-referrer" browsers send forms as from an unknown origin.
        response["Referrer-Policy"] = "strict-origin"
        return response
