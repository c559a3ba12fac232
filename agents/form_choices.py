"""Choices for the forms of agents, as (value, label)."""

from __future__ import annotations

from uuid import UUID

from adiuva.accounts.validators import timezones
from adiuva.devices.models import Device
from integrations.models import Connection, Health

Choices = list[tuple[str, str]]


def devices(user_id: UUID) -> Choices:
    """Return the user's devices, the one seen last first."""
    found = Device.objects.of(user_id).with_online().seen_last_first()[:100]
    return [
        (
            device.device_id,
            f"{device.name or device.device_id} ({'online' if getattr(device, 'is_online', False) else 'offline'})",
        )
        for device in found
    ]


def connections(user_id: UUID) -> Choices:
    """Return the user's mailboxes and channels."""
    return [
        (
            str(one.pk),
            " ".join(
                [
                    one.get_provider_display(),
                    one.address_or_blank,
                    "" if one.health == Health.OK else "(to be connected again)",
                ]
            ).strip(),
        )
        for one in Connection.objects.of(user_id).order_by("provider", "created_at")[:100]
    ]


def zones(user_id: UUID) -> Choices:
    return [(name, name) for name in sorted(timezones())]


def schedules(user_id: UUID) -> Choices:
    return [
        ("0 8 * * 1-5", "weekdays at 8:00"),
        ("0 7 * * *", "every day at 7:00"),
        ("0 * * * *", "every hour"),
        ("0 9 * * 1", "Mondays at 9:00"),
        ("0 9 1 * *", "the first of the month at 9:00"),
    ]
