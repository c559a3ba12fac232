"""A Celery worker with one guarantee removed, to prove that the chaos test notices:
`python -m bench.chaos.sabotaged_worker outbox -A adiuva worker …`.

`outbox`: records are sent to the device when they are found, and those that do not arrive are forgotten. `ids`: a
record gets a new call id each time it is sent, so devices cannot dedupe. The product itself has no such switch.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from bench.harness import run_sabotaged_worker


def without_outbox() -> None:
    """Mark records as delivered when they are added. The rows stay: without them, every changed document would create
    duplicates and hide what this is to show."""
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
    _deliver_under_new_ids()


def without_stable_call_ids() -> None:
    _deliver_under_new_ids()


def _deliver_under_new_ids() -> None:
    """Give each delivery new call ids, so that a device cannot recognise a record it already has."""
    from adiuva.devices import outbox

    deliver: Callable[..., Any] = outbox.deliver

    async def deliver_under_new_ids(link: Any, records: Any) -> Mapping[uuid.UUID, Any]:
        names = {uuid.uuid4(): record for record in records}
        sent = [dataclasses.replace(record, id=name) for name, record in names.items()]
        outcomes = await deliver(link, sent)
        return {names[name].id: outcome for name, outcome in outcomes.items()}

    outbox.deliver = cast(Any, deliver_under_new_ids)


SABOTAGES: Final[dict[str, Callable[[], None]]] = {"outbox": without_outbox, "ids": without_stable_call_ids}


if __name__ == "__main__":
    run_sabotaged_worker(SABOTAGES)
