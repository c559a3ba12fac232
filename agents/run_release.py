"""Releases a run from its worker: it waits for its device or account, is retried later, or ends.

Each function raises LeaseLost if the worker no longer holds the run.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings
from django.db import transaction

from adiuva.core import db
from adiuva.core.errors import Text
from adiuva.devices import outbox
from adiuva.devices.models import Device
from agents import journal, runs
from agents.claimed_runs import ClaimedRun, add_counts_to, held
from agents.journal import EventKind, JournalEntry
from agents.models import Run
from integrations.models import Connection, Health, reconnect_text

_MAX_INTERRUPTION_PAUSE_S: Final = 5.0


@transaction.atomic
def wait_for_device(claimed: ClaimedRun, *, epoch: int | None) -> None:
    """Put a run aside until its device connects. The attempt does not count: nothing went wrong.

    `epoch`: that of the lost connection, None if there was none. A device that has connected again by now looked for
    waiting runs before this one was among them, so the run is resumed after the commit.
    """
    run = held(claimed)
    if _cancel_if_requested(run):
        return
    # A run that never began may still absorb later slots, or be cancelled as too late for its own.
    began = claimed.started_before or epoch is not None
    _put_aside(run, Run.State.WAITING_DEVICE, started_at=run.started_at if began else None)
    journal.write(run, [JournalEntry(EventKind.WAITING, "device_offline")])
    transaction.on_commit(lambda: _resume_if_back(claimed, epoch))


def _cancel_if_requested(run: Run) -> bool:
    if run.cancel_requested_at:
        runs.end(run, Run.State.CANCELLED, "cancelled")
        return True
    return False


def _put_aside(run: Run, state: Run.State, **changes: Any) -> None:
    run.revoke(state=state, phase="", deadline_at=None, attempt=run.attempt - 1, **changes)


def _resume_if_back(claimed: ClaimedRun, epoch: int | None) -> None:
    online = Device.objects.of(claimed.user_id).online().filter(device_id=claimed.device_id)
    if epoch is not None:
        online = online.exclude(epoch=epoch)
    if online.exists():
        runs.resume_waiting(user_id=claimed.user_id, device_id=claimed.device_id)


@transaction.atomic
def wait_for_reauth(claimed: ClaimedRun) -> bool:
    """Put a run aside until its user connects the account again. The attempt does not count.

    Returns False if the account is in order according to the database: then the run is still ours.
    """
    run = held(claimed)
    if _cancel_if_requested(run):
        return True
    assert claimed.account is not None
    # Locked, so that a user who connects the account again at this moment waits, and then finds the waiting run.
    found = Connection.objects.select_for_update(no_key=True).filter(pk=claimed.account.connection).first()
    if found is None:
        runs.end(run, Run.State.ERROR, "no_connection", "its account is not connected any more")
        return True
    if found.health == Health.OK:
        return False
    _put_aside(run, Run.State.AWAITING_REAUTH)
    message = reconnect_text(found.provider, found.reason)
    journal.write(run, [JournalEntry(EventKind.WAITING, "needs_reauth", message=message)])
    return True


@transaction.atomic
def wait_for_budget(claimed: ClaimedRun) -> None:
    """Put a run aside until there is money for its models again. The attempt does not count: nothing went wrong."""
    run = held(claimed)
    if _cancel_if_requested(run):
        return
    _put_aside(run, Run.State.AWAITING_BUDGET, enqueued_at=db.clock())
    journal.write(run, [JournalEntry(EventKind.WAITING, "budget_spent")])


@transaction.atomic
def retry_later(
    claimed: ClaimedRun, code: str, message: str = "", *, retry_after: float | None = None
) -> bool:
    """Queue a run again after a transient fault, at a random moment (full jitter), and not before `retry_after` seconds
    if the provider named them. Finished work is kept.

    Returns False if its retries or its time are used up: then the run is still ours.
    """
    run = held(claimed)
    if _cancel_if_requested(run):
        return True
    rules = settings.RUNS
    if run.retries >= rules["retries"]:
        return False
    pause = random.uniform(0, min(rules["longest_retry_s"], rules["retry_s"] * 2**run.retries))
    if retry_after is not None:
        pause = max(pause, retry_after * random.uniform(1, 1.1))
    until = db.clock() + dt.timedelta(seconds=pause)
    if run.deadline_at and until >= run.deadline_at:
        return False
    runs.requeue(run, not_before=until, retries=run.retries + 1)
    when = Text("to be tried again at {time}", time=until.isoformat(timespec="seconds"))
    journal.write(
        run,
        [
            JournalEntry(
                EventKind.WAITING,
                code,
                count=run.retries,
                message=Text("{message}; {when}", message=Text.of(message), when=when) if message else when,
            )
        ],
    )
    return True


@transaction.atomic
def requeue_interrupted(claimed: ClaimedRun) -> None:
    """Queue a run again whose worker is alive but lost its infrastructure (database, Redis, network)."""
    run = held(claimed)
    if _cancel_if_requested(run):
        return
    pause = dt.timedelta(seconds=random.uniform(0, _MAX_INTERRUPTION_PAUSE_S))
    runs.requeue(run, not_before=db.clock() + pause)
    journal.write(run, [JournalEntry(EventKind.NOTE, "interrupted")])


@transaction.atomic
def finish(
    claimed: ClaimedRun,
    state: Run.State | None = None,
    code: str = "",
    message: str = "",
    counts: Mapping[str, Any] | None = None,
) -> Run:
    """End a run. Without a state its counts decide: success, partial, or error if nothing could be read. `counts`:
    those that were not written yet.
    """
    run = held(claimed)
    add_counts_to(run, **counts or {})
    if state is None:
        _count_never_read(run)
        if not run.problems:
            state, code = Run.State.SUCCESS, "completed" if run.files_seen else "empty"
        elif run.files_done > run.files_failed or run.items_created:
            state, code = Run.State.PARTIAL, "completed_with_failures"
        else:
            state, code = Run.State.ERROR, "nothing_could_be_read"
        run.verdict = code if state != Run.State.ERROR else ""
    elif left := outbox.count_waiting(run.pk):
        journal.write(run, [JournalEntry(EventKind.NOTE, "records_left_over", count=left)])
    runs.end(run, state, code, message)
    return run


def _count_never_read(run: Run) -> None:
    """Count sources that were seen and not done as failed. There should be none; if there are, it is no success."""
    lost = run.files_seen - run.files_done
    if lost > 0:
        run.files_done, run.files_failed = run.files_seen, run.files_failed + lost
        run.problems += lost
        journal.write(run, [JournalEntry(EventKind.SOURCE_FAILED, "never_read", count=lost)])
