"""What a user is told of an account that has to be connected again."""

from __future__ import annotations

from uuid import UUID

from redis.exceptions import RedisError

from adiuva import db
from adiuva.devices.link import DeviceLink, DeviceOffline
from adiuva.devices.models import Device
from adiuva.devices.protocol import Error
from agents.models import Agent
from integrations.models import Connection, Health


async def needs_reauth(connection_id: UUID) -> None:
    """Say it once on each of the user's devices that is here; the others see it in the agents (`paused`)."""
    frame, devices, user_id = await db.run(_about, connection_id)
    if frame is None:
        return
    for device in devices:
        try:
            async with DeviceLink(user_id, device) as link:
                await link.target()
                await link.tell(frame)
        except (DeviceOffline, OSError, RedisError):
            continue  # it sees it in the agents


def _about(connection_id: UUID) -> tuple[Error | None, list[UUID], UUID]:
    lost = Connection.objects.filter(pk=connection_id, health=Health.NEEDS_REAUTH).first()
    count = Agent.objects.filter(connection=connection_id, enabled=True).count()
    if lost is None or not count:
        return None, [], connection_id
    agents = "1 agent waits" if count == 1 else f"{count} agents wait"
    message = f"Connect {lost.get_provider_display()} again: {lost.get_reason_display()}. {agents} for it."
    frame = Error(code="needs_reauth", message=message, ref=str(connection_id))
    return frame, list(Device.objects.of(lost.user_id).online().values_list("pk", flat=True)), lost.user_id
