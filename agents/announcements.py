"""Decides which ends of scheduled runs are announced to users unasked (chat.run_announcements writes the message).

`runs.end` asks here, so the mark is written in the transaction in which a run ends.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from django.db.models.functions import Now

from agents.models import Agent, Announce, Run, RunEvent

# The same problem of the same agent is announced once in this time, unless a run succeeded in between.
_SAME_PROBLEM: Final = dt.timedelta(days=1)
_FAILED: Final = (Run.State.ERROR, Run.State.TIMEOUT, Run.State.PARTIAL)


def wanted(run: Run, state: Run.State, code: str) -> bool:
    """Return whether to announce the end of a run, whose row is locked. `code`: that of the end in its journal."""
    if run.trigger != Run.Trigger.SCHEDULE or state == Run.State.CANCELLED or run.agent_id is None:
        return False
    announce = Agent.objects.filter(pk=run.agent_id).values_list("announce", flat=True).first()
    if announce == Announce.ALWAYS:
        return True
    has_problem = state in _FAILED or run.problems > 0
    return announce == Announce.PROBLEMS and has_problem and not _is_known(run, code)


def _is_known(run: Run, code: str) -> bool:
    """Return whether the user was told of the same problem a short while ago, and it has not gone since."""
    before = Run.objects.filter(agent_ref=run.agent_ref).exclude(pk=run.pk)
    told = before.exclude(announcement="").filter(completed_at__gt=Now() - _SAME_PROBLEM)
    last = told.order_by("-completed_at").first()
    if last is None or before.filter(state=Run.State.SUCCESS, completed_at__gt=last.completed_at).exists():
        return False
    return RunEvent.objects.filter(run=last, kind=RunEvent.Kind.FINISHED, code=code).exists()
