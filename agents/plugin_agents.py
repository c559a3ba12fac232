"""Agents from plugins: the offer of an installed template, tried out on documents of the user's before it is saved.

It is saved by the same endpoints as any agent, which check it once more. The template's instructions reach a model as
the prompt of any agent does, after the user has seen them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.core.errors import Conflict, Invalid, NotFound
from adiuva.devices.models import Device
from agents import configuration, services
from agents.journeys.interview import AgentProposal
from agents.journeys.samples import SampleRequest
from agents.journeys.trial import TrialResult, run_trial
from agents.models import AgentFamily, AgentType
from billing import usage
from billing.marketplace.manifest import AgentTemplate, PluginKind
from billing.marketplace.models import PluginVersion
from billing.marketplace.user_models import PluginInstall
from billing.models import Purpose

MAILBOXES: Final = {
    "mail": (AgentType.GMAIL, AgentType.OUTLOOK),
    "teams": (AgentType.TEAMS,),
    "local": (AgentType.LOCAL_DIRECTORY,),
}


class NoTemplate(NotFound):
    code = "no_template"

    def __init__(self) -> None:
        super().__init__("you have installed no agent template with this id")


class TemplateUnusable(Conflict):
    code = "template_unusable"

    def __init__(self) -> None:
        super().__init__("this version of the template cannot be used: update it, or remove it")


def template_of(user_id: UUID, plugin_id: UUID) -> AgentTemplate:
    """Return the template of a plugin that the user has installed. Raises NoTemplate, TemplateUnusable."""
    mine = PluginInstall.objects.of(user_id).present().filter(plugin_id=plugin_id)
    found = mine.filter(plugin__kind=PluginKind.AGENT_TEMPLATE).select_related("version").first()
    if found is None:
        raise NoTemplate
    if found.version.state not in (PluginVersion.State.LISTED, PluginVersion.State.YANKED):
        raise TemplateUnusable
    return template_in(found.version)


def template_in(version: PluginVersion | None) -> AgentTemplate:
    """Return the template in a version of a plugin. Raises TemplateUnusable."""
    try:
        return AgentTemplate.model_validate(version.manifest.get("agent") if version is not None else None)
    except ValidationError:
        raise TemplateUnusable from None


def offer(user_id: UUID, plugin_id: UUID) -> dict[str, Any]:
    """Return the template as the body of a new agent, without the parts that the user chooses.

    Raises what `template_of` does.
    """
    template = template_of(user_id, plugin_id)
    is_local = template.source == "local"
    offered = {
        "agent_type": AgentFamily.LOCAL if is_local else AgentFamily.CLOUD,
        "agent_kinds": [kind.value for kind in MAILBOXES[template.source]],
        "name": template.name,
        "prompt_template": template.prompt,
        "data_types": template.data_types,
        "schedule_cron": template.schedule_cron,
    }
    if is_local:
        return offered | {"file_extensions": configuration.extensions(template.file_extensions)}
    return offered | {"filter_config": services.clean_filter_config(template.filters)}


async def try_out(
    *,
    user_id: UUID,
    plugin_id: UUID,
    device_id: str = "",
    directory_paths: Sequence[str] = (),
    provider: str = "",
    connection: UUID | None = None,
) -> TrialResult:
    """Return the records that an agent of the template would find in up to three documents. Nothing is created.

    Raises NoTemplate, TemplateUnusable and Invalid; the result itself says what prevented the reading.
    """
    request, zone = await db.run(
        _sample_request, user_id, plugin_id, device_id, directory_paths, provider, connection
    )
    async with usage.metered(user_id, Purpose.JOURNEYS, None):
        return await run_trial(request, zone)


def _sample_request(
    user_id: UUID,
    plugin_id: UUID,
    device_id: str,
    paths: Sequence[str],
    provider: str,
    connection: UUID | None,
) -> tuple[SampleRequest, ZoneInfo]:
    template = template_of(user_id, plugin_id)
    user = User.objects.get(pk=user_id)
    proposal = AgentProposal(
        prompt_template=template.prompt,
        data_types=template.data_types,
        name=template.name,
        file_extensions=configuration.extensions(template.file_extensions),
        filter_config=services.clean_filter_config(template.filters),
    )
    kinds = MAILBOXES[template.source]
    device, folders = None, tuple[str, ...]()
    if template.source == "local":
        kind = AgentType.LOCAL_DIRECTORY
        device = Device.objects.of(user_id).filter(device_id=device_id).values_list("pk", flat=True).first()
        if device is None:
            raise _bad_field("device_id", "No device of yours has this id.")
        folders = tuple(paths)
        if not folders:
            raise _bad_field("directory_paths", "Name a folder that the device grants.")
    else:
        if provider not in kinds:
            raise _bad_field("provider", "The template reads another kind of mailbox.")
        kind = AgentType(provider)
        connection = services.connection_for(user_id, provider, connection).pk
    request = SampleRequest(
        user_id,
        uuid.uuid4(),
        kind,
        None,
        proposal,
        connection_id=connection if kind != AgentType.LOCAL_DIRECTORY else None,
        device=device,
        paths=folders,
    )
    return request, ZoneInfo(user.timezone)


def _bad_field(field: str, problem: str) -> Invalid:
    return Invalid("the template cannot be tried out on this", fields={field: [problem]})
