"""REST serializers of teams."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from billing.teams.models import Membership

ROLES = ["owner", "member"]
MEMBER_STATES = [*Membership.State.values, "expired"]


class MemberSerializer(serializers.Serializer[Any]):
    """Somebody in a team, or invited to it."""

    id = serializers.UUIDField(allow_null=True, help_text="Null for the owner, who cannot be removed.")
    email = serializers.EmailField()
    role = serializers.ChoiceField(choices=ROLES)
    state = serializers.ChoiceField(
        choices=MEMBER_STATES,
        help_text="`over_limit`: in the team, without a seat. `expired`: an invitation that nobody accepted in time.",
    )
    since = serializers.DateTimeField()


class TeamSerializer(serializers.Serializer[Any]):
    """The team that an account owns or is in. A member sees neither seats nor the others."""

    id = serializers.UUIDField(allow_null=True, help_text="Null before anybody is invited.")
    name = serializers.CharField(allow_blank=True)
    role = serializers.ChoiceField(choices=ROLES)
    owner = serializers.EmailField()
    state = serializers.ChoiceField(choices=Membership.State.values)
    seats = serializers.IntegerField(allow_null=True, help_text="The owner's among them; null: any number.")
    seats_taken = serializers.IntegerField(allow_null=True, help_text="Open invitations count.")
    members = MemberSerializer(many=True)


class TeamNameSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=100)


class SeatsSerializer(serializers.Serializer[Any]):
    seats = serializers.IntegerField(min_value=1, max_value=500, help_text="The owner's among them.")


class InviteSerializer(serializers.Serializer[Any]):
    email = serializers.EmailField()


class InvitationSerializer(MemberSerializer):
    """An invitation that was just made."""

    link = serializers.URLField(
        help_text="The page on which it is accepted. It is mailed, too, where the server sends mails."
    )


class AcceptSerializer(serializers.Serializer[Any]):
    invitation = serializers.CharField(max_length=400, help_text="From the invitation's link.")
