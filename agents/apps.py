from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_save

from adiuva.accounts.signals import closing
from adiuva.core import metrics, readiness
from adiuva.core.enqueue import enqueue_on_commit
from billing.marketplace import schedule_words
from billing.marketplace.checks import add_manifest_check
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import Manifest
from billing.signals import plans_edited, tier_changed
from integrations.signals import needs_reauth, reconnected


class AgentsConfig(AppConfig):
    name = "agents"

    def ready(self) -> None:
        post_save.connect(_user_saved, sender=settings.AUTH_USER_MODEL, dispatch_uid="agents.user_saved")
        needs_reauth.connect(_needs_reauth, dispatch_uid="agents.needs_reauth")
        reconnected.connect(_reconnected, dispatch_uid="agents.reconnected")
        tier_changed.connect(_tier_changed, dispatch_uid="agents.tier_changed")
        plans_edited.connect(_plans_edited, dispatch_uid="agents.plans_edited")
        closing.connect(_account_closing, dispatch_uid="agents.account_closing")
        _count_for_plans()
        _name_for_usage()
        add_manifest_check("agent_template", _look_at_template)
        schedule_words.describe_with(_in_words)
        readiness.register("runs", _backlog)
        metrics.at_scrape("adiuva_runs_queued", "Runs that wait for a worker.", (), _queued)
        metrics.at_scrape(
            "adiuva_run_queue_age_seconds", "How long the first of them has waited.", (), _queue_age
        )


def _user_saved(instance: Any, created: bool, raw: bool = False, **_: Any) -> None:
    from agents import schedules

    if not created and not raw:
        schedules.reschedule_for_user(user_id=instance.pk)


def _needs_reauth(connection_id: UUID, **_: Any) -> None:
    from agents import runs

    runs.enqueue_reauth_notice(connection_id)


def _reconnected(connection_id: UUID, **_: Any) -> None:
    from agents import schedules

    schedules.connection_restored(connection_id=connection_id)


def _account_closing(user_id: UUID, **_: Any) -> None:
    from agents import services

    services.stop_all(user_id=user_id)


def _tier_changed(user_id: UUID, **_: Any) -> None:
    from agents import plan_limits

    plan_limits.settle(user_id)


def _plans_edited(**_: Any) -> None:
    enqueue_on_commit("agents.settle_plans")


def _count_for_plans() -> None:
    from agents import plan_limits
    from billing import entitlements

    entitlements.count_with("agents", plan_limits.count)
    entitlements.count_with("agents_enabled", plan_limits.count_running)


def _name_for_usage() -> None:
    from agents.models import Agent
    from billing import usage_reports

    usage_reports.name_agents_with(lambda user_id, ids: Agent.objects.of(user_id).names(ids))


def _look_at_template(manifest: Manifest) -> Iterator[Finding]:
    from agents import plugin_templates

    return plugin_templates.look(manifest)


def _in_words(cron: str) -> str:
    from agents.schedule_words import describe

    return describe(cron)


def _backlog() -> dict[str, float]:
    from agents import run_queue

    found = run_queue.backlog()
    return {"queued": found.runs, "oldest_queued_s": round(found.oldest_s, 1)}


def _queued() -> metrics.Samples:
    return [((), _backlog()["queued"])]


def _queue_age() -> metrics.Samples:
    return [((), _backlog()["oldest_queued_s"])]
