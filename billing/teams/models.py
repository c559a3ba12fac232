"""Teams and their members.

How to query membership:

    Membership.objects.of(user_id).seated().select_related("team").first()   # the team on whose seat a user sits
    Team.objects.filter(owner=user_id).first()                               # the team that a user owns
    billing.teams.members.join(team_id=…, user_id=…)                         # gives a user a free seat, uninvited

A team belongs to its owner, who sits on a seat without a row here. A seat gives the plan of the owner, in
`billing.tiers`; whether the plan has single sign-on, say, is `entitlements.require(team.owner_id, "sso")`.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Final, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower, Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.sealed import SealedTextField

INVITATION_LASTS: Final = dt.timedelta(days=14)


class Team(models.Model):
    """One account that pays for seats, and the accounts that sit on them."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, related_name="team")
    name_sealed = SealedTextField(null=True, help_text="with the owner's key")
    seats_given = models.PositiveIntegerField(
        default=0,
        help_text="Counts while staff give the owner a team's plan; what is paid counts if it is more.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["-created_at"], name="teams_newest")]

    def __str__(self) -> str:
        return f"team {self.pk}"

    @property
    def name(self) -> str:
        """The team's name; "" if it has none."""
        if self.name_sealed is None:
            return ""
        return Team.name_sealed.unseal_from(cipher_for(self.owner_id), self)


class MembershipQuerySet(models.QuerySet["Membership"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def seated(self) -> Self:
        """Return members that have a seat, and with it the team's plan."""
        return self.filter(state=Membership.State.ACTIVE)

    def invited(self) -> Self:
        """Return invitations that can still be accepted."""
        return self.filter(state=Membership.State.INVITED, invited_at__gt=Now() - INVITATION_LASTS)

    def taking_seats(self) -> Self:
        """Return members on a seat, and open invitations, which keep one free."""
        open_ones = Q(state=Membership.State.INVITED, invited_at__gt=Now() - INVITATION_LASTS)
        return self.filter(Q(state=Membership.State.ACTIVE) | open_ones)


class Membership(models.Model):
    """A member of a team other than its owner, or an invitation. It is deleted when it ends."""

    class State(models.TextChoices):
        INVITED = "invited"
        ACTIVE = "active", "on a seat"
        OVER_LIMIT = "over_limit", "without a seat"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    team = models.ForeignKey(Team, models.CASCADE, related_name="memberships", db_index=False)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, models.CASCADE, null=True, related_name="membership"
    )
    address = models.EmailField(blank=True, help_text="Of an invitation; empty once it is accepted.")
    state = models.CharField(max_length=10, choices=State, default=State.INVITED)
    invited_at = models.DateTimeField(db_default=Now())
    joined_at = models.DateTimeField(null=True)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        ordering = ["joined_at", "invited_at", "id"]
        indexes = [models.Index(fields=["team", "joined_at"], name="members_of_team")]
        constraints = [
            models.UniqueConstraint(
                "team", Lower("address"), condition=Q(state="invited"), name="invited_once"
            ),
            models.CheckConstraint(
                condition=Q(state="invited", user=None, joined_at=None) & ~Q(address="")
                | Q(
                    state__in=["active", "over_limit"],
                    user__isnull=False,
                    joined_at__isnull=False,
                    address="",
                ),
                name="member_or_invitation",
            ),
        ]

    def __str__(self) -> str:
        return f"membership {self.pk}"
