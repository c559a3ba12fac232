"""Filters for the messages that an agent reads. Providers apply what they can; everything is checked again here."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parseaddr
from typing import Any, Final

from adiuva.core.errors import Invalid

_MAX_NAMES: Final = 50
_MAX_NAME_CHARS: Final = 200
_FIRST_YEAR, _LAST_YEAR = 1970, 9000
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_DOMAIN: Final = re.compile(r"@?[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_BRACKETED: Final = re.compile(r"<([^<>\s]*)>\s*$")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")


@dataclass(frozen=True)
class Filters:
    """Labels, folders or channels by name or id, senders, and the time of sending from `start` up to `end` (exclusive).

    An empty tuple or None does not filter.
    """

    labels: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    start: dt.datetime | None = None
    end: dt.datetime | None = None

    @classmethod
    def parse(cls, config: Mapping[str, Any], zone: dt.tzinfo = dt.UTC) -> Filters:
        """Read an agent's filter_config. Days are in the user's zone; the last one is included. Raises Invalid."""
        span = config.get("date_range") or {}
        if not isinstance(span, Mapping):
            raise _invalid("date_range", "it must be an object with from and to")
        start = _moment(span.get("from"), zone, last=False)
        end = _moment(span.get("to"), zone, last=True)
        if start and end and end <= start:
            raise _invalid("date_range", "it ends before it begins")
        return cls(_names(config, "labels"), _names(config, "senders"), start, end)

    def admits_time(self, sent_at: dt.datetime | None) -> bool:
        """Return whether the time of sending passes. A message without a readable date does."""
        if sent_at is None:
            return True
        return not (self.start and sent_at < self.start) and not (self.end and sent_at >= self.end)

    def admits_sender(self, sender: str) -> bool:
        """Match by address, by domain (including subdomains), or by a part of the name."""
        if not self.senders:
            return True
        # The text before an address in angle brackets is a name, even if it looks like an address.
        bracketed = _BRACKETED.search(sender)
        whole, address = sender.casefold(), (bracketed[1] if bracketed else parseaddr(sender)[1]).casefold()
        host = address.rpartition("@")[2]
        return any(_matches(wanted.casefold(), whole, address, host) for wanted in self.senders)

    def addresses(self) -> list[str]:
        """Return the senders, if all are plain addresses that are safe in a provider's query.

        Otherwise return an empty list, and senders are checked only here.
        """
        plain = [sender for sender in self.senders if _ADDRESS.fullmatch(sender)]
        return plain if len(plain) == len(self.senders) else []


def _matches(wanted: str, whole: str, address: str, host: str) -> bool:
    if _ADDRESS.fullmatch(wanted):
        return address == wanted
    if _DOMAIN.fullmatch(wanted):
        domain = wanted.removeprefix("@")
        return host == domain or host.endswith(f".{domain}")
    return wanted in whole


def _names(config: Mapping[str, Any], field: str) -> tuple[str, ...]:
    given = config.get(field) or []
    if not isinstance(given, list | tuple) or len(given) > _MAX_NAMES:
        raise _invalid(field, f"it must be a list of at most {_MAX_NAMES}")
    names = []
    for name in given:
        if (
            not isinstance(name, str)
            or not name.strip()
            or len(name) > _MAX_NAME_CHARS
            or _CONTROLS.search(name)
        ):
            raise _invalid(field, f"each must be a text of 1 to {_MAX_NAME_CHARS} characters on one line")
        names.append(name.strip())
    return tuple(dict.fromkeys(names))


def _moment(value: Any, zone: dt.tzinfo, *, last: bool) -> dt.datetime | None:
    if value in (None, ""):
        return None
    try:
        if len(value) <= 10:
            day = dt.date.fromisoformat(value)
            if last:
                day += dt.timedelta(days=1)
            moment = dt.datetime.combine(day, dt.time(), zone)
        else:
            moment = dt.datetime.fromisoformat(value)
        # Near the ends of the calendar, a conversion to another zone overflows.
        if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
            raise ValueError
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError):
        raise _invalid("date_range", "a date is YYYY-MM-DD, or a date and time of ISO 8601") from None


def _invalid(field: str, why: str) -> Invalid:
    return Invalid("The filters are not valid.", fields={f"filter_config.{field}": [why]})
