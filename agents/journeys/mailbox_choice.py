"""Chooses the mailbox of a journey, for clients that send only `cloud`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from django.utils.translation import gettext
from pydantic import BaseModel

from adiuva.core.errors import Invalid, Text
from agents import services
from agents.models import AgentFamily, AgentType
from integrations.models import Connection, Health


class Mailbox(BaseModel):
    """A connected account, as its user knows it."""

    id: uuid.UUID
    agent_type: AgentType
    address: str

    def __str__(self) -> str:
        label = self.agent_type.label
        return f"{label} ({self.address})" if self.address else label


@dataclass(frozen=True)
class Beginning:
    """The start of a journey. `agent_type` is None if the user has to choose among `mailboxes` first."""

    agent_type: AgentType | None
    connection_id: uuid.UUID | None = None
    mailboxes: list[Mailbox] = field(default_factory=list)


def begin(user_id: uuid.UUID, kind: str, agent_id: uuid.UUID | None) -> Beginning:
    """Start a journey. Raises NotFound for an agent that is not the user's, Invalid where no mailbox is connected."""
    if kind == AgentFamily.LOCAL:
        return Beginning(AgentType.LOCAL_DIRECTORY)
    if kind != AgentFamily.CLOUD:
        return Beginning(AgentType(kind))
    if agent_id is not None:
        agent = services.get_agent(user_id, agent_id)
        if agent.is_local:
            raise Invalid("this agent is of another type", fields={"agent_type": ["Not the agent's."]})
        return Beginning(AgentType(agent.type))
    connections = Connection.objects.of(user_id).filter(health=Health.OK).order_by("created_at")
    mailboxes = [
        Mailbox(id=one.pk, agent_type=AgentType(one.provider), address=one.address_or_blank)
        for one in connections
    ]
    if not mailboxes:
        where = ", ".join(f"/api/v1/oauth/{each}/authorize" for each in AgentType.values[1:])
        said = Text("No mailbox is connected: begin with one of {where}.", where=where)
        raise Invalid(said, fields={"agent_type": [said]})
    if len(mailboxes) == 1:
        return Beginning(mailboxes[0].agent_type, mailboxes[0].id)
    return Beginning(None, mailboxes=mailboxes)


def question(mailboxes: Sequence[Mailbox]) -> str:
    listed = "\n".join(f"{number}. {each}" for number, each in enumerate(mailboxes, 1))
    return gettext("Which of your accounts should the agent read?") + f"\n{listed}"


def chosen(mailboxes: Sequence[Mailbox], answer: str) -> Mailbox | None:
    """Return the mailbox that an answer names by number, address, or a provider with one account; None if unclear."""
    said = answer.strip().lower()
    number = re.fullmatch(r"#?(\d{1,3})[.)]?", said)
    if number and 1 <= int(number[1]) <= len(mailboxes):
        return mailboxes[int(number[1]) - 1]
    for names in (_addresses, _providers):
        found = [each for each in mailboxes if any(name in said for name in names(each))]
        if len(found) == 1:
            return found[0]
    return None


def _addresses(mailbox: Mailbox) -> list[str]:
    return [mailbox.address.lower()] if mailbox.address else []


def _providers(mailbox: Mailbox) -> list[str]:
    return [mailbox.agent_type.value, mailbox.agent_type.label.lower()]
