"""Tell users, on their devices, that an account must be connected again."""

from __future__ import annotations

from uuid import UUID

from django.utils.translation import gettext, ngettext
from redis.exceptions import RedisError

from adiuva.core import db
from adiuva.core.language import speaking
from adiuva.devices.link import DeviceLink, DeviceOffline
from adiuva.devices.models import Device
from adiuva.devices.protocol import Error
from agents.models import Agent
from integrations import tokens
from integrations.models import Connection, Health


async def send_reauth_notice(connection_id: UUID) -> None:
    """Send the notice once, to each of the user's online devices. If none is, it waits for the first to connect."""
    frame, devices, user_id = await db.run(_notice, connection_id)
    if frame is None or not devices or not await db.run(tokens.claim_notice, connection_id):
        return
    if not any([await _send(user_id, device, frame) for device in devices]):
        await db.run(tokens.release_notice, connection_id)


async def _send(user_id: UUID, device: UUID, frame: Error) -> bool:
    try:
        async with DeviceLink(user_id, device) as link:
            await link.target()
            await link.notify(frame)
            return await link.is_current()  # otherwise it disconnected before it got the notice
    except (DeviceOffline, OSError, RedisError):
        return False


def _notice(connection_id: UUID) -> tuple[Error | None, list[UUID], UUID]:
    lost = (
        Connection.objects.select_related("user").filter(pk=connection_id, health=Health.NEEDS_REAUTH).first()
    )
    if lost is None:
        return None, [], connection_id
    count = Agent.objects.filter(connection=connection_id, enabled=True).count()
    with speaking(lost.user.locale):
        message = gettext("Connect {provider} again: {reason}.").format(
            provider=lost.get_provider_display(), reason=gettext(lost.get_reason_display())
        )
        waiting = ngettext("{count} agent waits for it.", "{count} agents wait for it.", count)
    frame = Error(
        code="needs_reauth",
        message=f"{message} {waiting.format(count=count)}" if count else message,
        ref=str(connection_id),
    )
    here = Device.objects.of(lost.user_id).online().filter(protocol__gte=tokens.NOTICE_PROTOCOL)
    return frame, list(here.values_list("pk", flat=True)), lost.user_id
