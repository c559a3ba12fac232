"""Celery with a promise taken out, so that it can be seen that the harness notices: `python -m bench.chaos.control
outbox -A adiuva worker …`.

`outbox`: records go to the device as they are found, and what does not arrive is forgotten. `ids`: a record has another
call id each time that it is sent. All else is the product's. Nothing of this is in the product.
"""

from __future__ import annotations

import dataclasses
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import django


def no_outbox() -> None:
    """What is found counts as delivered at once. That it was found is kept, or changed documents alone would double."""
    from adiuva.devices import outbox
    from adiuva.devices.models import OutboxRecord

    add = outbox.add

    def add_as_delivered(**about: Any) -> Any:
        new = add(**about)
        OutboxRecord.objects.filter(pk__in=[record.id for record in new]).update(
            state=OutboxRecord.State.DELIVERED, sealed=None
        )
        return new

    outbox.add = add_as_delivered
    _with_other_ids()


def no_ids() -> None:
    _with_other_ids()


def _with_other_ids() -> None:
    """Each delivery under ids of its own, so that a device cannot know a record that it has."""
    from adiuva.devices import outbox

    deliver: Callable[..., Any] = outbox.deliver

    async def deliver_anew(link: Any, records: Any, **more: Any) -> Mapping[uuid.UUID, Any]:
        names = {uuid.uuid4(): record for record in records}
        sent = [dataclasses.replace(record, id=name) for name, record in names.items()]
        outcomes = await deliver(link, sent, **more)
        return {names[name].id: outcome for name, outcome in outcomes.items()}

    outbox.deliver = cast(Any, deliver_anew)


CONTROLS: Final[dict[str, Callable[[], None]]] = {"outbox": no_outbox, "ids": no_ids}


def main(control: str, arguments: list[str]) -> None:
    from celery.__main__ import main as celery

    django.setup()
    CONTROLS[control]()
    sys.argv = ["celery", *arguments]
    celery()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
