"""Celery tasks of accounts."""

from uuid import UUID

from celery import shared_task

from adiuva.accounts import browser_sessions, deletion, key_maintenance, mails, services


@shared_task(name="accounts.prune")
def prune() -> None:
    """Delete old sessions and expired admin cookies, and finish what was interrupted between the key databases."""
    services.delete_old_sessions()
    browser_sessions.delete_expired()
    key_maintenance.finish_interrupted()


@shared_task(name="accounts.send_mail")
def send_mail(mail_id: str) -> None:
    mails.send(UUID(mail_id))


@shared_task(name="accounts.sweep_mails")
def sweep_mails() -> None:
    mails.sweep()


@shared_task(name="accounts.delete")
def delete(user_id: str) -> None:
    deletion.resume(UUID(user_id))


@shared_task(name="accounts.sweep_deletions")
def sweep_deletions() -> None:
    deletion.sweep()
