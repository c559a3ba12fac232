"""Sets up an agent from a template that a user names in a chat.

Finds the template in the catalogue, merges it with the request, and installs it once the user has agreed. Values in the
request take precedence over those of the template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from adiuva.core.errors import AdiuvaError, Invalid
from agents import plugin_agents, services, set_up
from agents.models import Agent, AgentType
from agents.plugin_agents import MAILBOXES
from agents.set_up import CannotSetUp, PlannedChange
from billing import entitlements
from billing.marketplace import buying, installs
from billing.marketplace.manifest import AgentTemplate, PluginKind
from billing.marketplace.models import Plugin
from billing.marketplace.user_models import PluginInstall

_MOST_NAMED: Final = 8


@dataclass(frozen=True)
class ChosenTemplate:
    plugin_id: UUID
    name: str
    template: AgentTemplate
    is_installed: bool


def choose(user_id: UUID, wanted: str, before: Agent | None = None) -> ChosenTemplate:
    """Return the template that is meant: one that the user has, or one that is listed.

    `before`: the agent to change; a template only makes new ones, so any is refused. Raises CannotSetUp.
    """
    if before is not None:
        raise CannotSetUp("a template makes a new agent: name no other")
    mine = PluginInstall.objects.of(user_id).present().filter(plugin__kind=PluginKind.AGENT_TEMPLATE)
    installed = set(mine.values_list("plugin_id", flat=True))
    plugin = _named(wanted, installed)
    has_it = plugin.pk in installed
    try:
        if has_it:
            template = plugin_agents.template_of(user_id, plugin.pk)
        else:
            entitlements.require(user_id, "plugins")
            template = plugin_agents.template_in(plugin.current_version)
    except AdiuvaError as error:
        raise CannotSetUp(error.message) from None
    if not has_it and not buying.may_have(user_id, plugin):
        page = f"{settings.PUBLIC_URL}/plugins/{plugin.slug}"
        raise CannotSetUp(f"this template has to be bought first, by the user, on {page}")
    return ChosenTemplate(plugin.pk, plugin.name, template, has_it)


def _named(wanted: str, installed: set[UUID]) -> Plugin:
    there = Plugin.objects.filter(Q(state=Plugin.State.LISTED) | Q(pk__in=installed))
    there = there.filter(kind=PluginKind.AGENT_TEMPLATE).select_related("current_version", "developer")
    said = " ".join(wanted.split()).strip("“”\"'")
    for which in (Q(slug=said.lower()) | Q(name__iexact=said), Q(name__icontains=said)):
        found = list(there.filter(which).order_by("-score", "id")[: _MOST_NAMED + 1])
        if len(found) == 1:
            return found[0]
        if found:
            raise CannotSetUp(
                f"several templates are called so: {_listed(found)}. Ask which, and give its id"
            )
    if offered := _listed(there.order_by("-score", "id")[:_MOST_NAMED]):
        raise CannotSetUp(f"there is no agent template “{said}”. There are, among others, {offered}")
    raise CannotSetUp("there are no agent templates")


def _listed(plugins: QuerySet[Plugin] | list[Plugin]) -> str:
    return ", ".join(f"“{plugin.name}” ({plugin.slug})" for plugin in plugins)


def parts(user_id: UUID, chosen: ChosenTemplate, given: dict[str, Any]) -> dict[str, Any]:
    """Return a wish that takes the template's parts wherever the user says nothing. Raises CannotSetUp."""
    template = chosen.template
    kinds = MAILBOXES[template.source]
    offered: dict[str, Any] = {
        "name": template.name,
        "look_for": template.prompt,
        "tables": template.data_types,
        "schedule": template.schedule_cron or None,
    }
    if template.source == "local":
        if given.get("kind", "folder") != "folder":
            raise CannotSetUp("this template reads folders")
        offered |= {"kind": "folder", "extensions": template.file_extensions or None}
    else:
        days = template.filters.get("date_range") or {}
        offered |= {
            "kind": _mailbox(user_id, kinds, given.get("kind")),
            "labels": template.filters.get("labels"),
            "senders": template.filters.get("senders"),
            "first_day": days.get("from"),
            "last_day": days.get("to"),
        }
    return {name: value for name, value in offered.items() if value is not None} | given


def _mailbox(user_id: UUID, kinds: tuple[AgentType, ...], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in kinds:
            raise CannotSetUp(f"this template reads {' or '.join(kinds)}")
        return wanted
    if len(kinds) == 1:
        return kinds[0].value
    connected = [kind.value for kind in kinds if _is_connected(user_id, kind)]
    if len(connected) != 1:
        raise CannotSetUp(f"kind is needed: the template reads {' or '.join(kinds)}. Ask the user which")
    return connected[0]


def _is_connected(user_id: UUID, kind: AgentType) -> bool:
    try:
        services.connection_for(user_id, kind.value, None)
    except Invalid:
        return False
    return True


@transaction.atomic
def install_and_save(user_id: UUID, chosen: ChosenTemplate, plan: PlannedChange) -> Agent | None:
    """Install the template for the user, who has said yes, and save its agent: both, or neither.

    Raises CannotSetUp, and what set_up.save does.
    """
    _install(user_id, chosen)
    return set_up.save(plan)


def _install(user_id: UUID, chosen: ChosenTemplate) -> None:
    if chosen.is_installed:
        return
    try:
        installs.install(user_id=user_id, plugin_id=chosen.plugin_id, agreed=[])
        now = plugin_agents.template_of(user_id, chosen.plugin_id)
    except AdiuvaError as error:
        raise CannotSetUp(error.message) from None
    if now != chosen.template:
        raise CannotSetUp("the template has changed meanwhile: ask again")
