"""Groups that staff can be put into, with exactly these permissions after each `migrate`.

A superuser gives a person rights beyond a role.
"""

from __future__ import annotations

from typing import Any, Final

from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.db.models import Q

VIEWER: Final = "Viewer"
SUPPORT: Final = "Support"
REVIEWER: Final = "Reviewer"
# Each role's permissions besides looking: (app, permission). Superusers make and delete accounts.
SUPPORT_MAY: Final = (
    ("accounts", "change_user"),  # language, active or not; send links; sign out everywhere
    ("accounts", "change_session"),  # end sessions
    ("billing", "add_override"),  # give a plan, and end it
    ("agents", "change_agent"),  # start a run
    ("agents", "change_run"),  # cancel a run
)
REVIEWER_MAY: Final = (
    ("billing", "change_pluginversion"),  # decide about versions, revoke and restore them
    ("billing", "change_plugin"),  # take plugins out of the catalogue
    ("billing", "change_pluginreport"),  # close reports
)


def create_roles(using: str = "default", **_: Any) -> None:
    """Make the groups, or set them back. Django calls this after the migrations of each database."""
    if using != "default":
        return
    look = tuple((model._meta.app_label, f"view_{model._meta.model_name}") for model in admin.site._registry)
    for name, more in ((VIEWER, ()), (SUPPORT, SUPPORT_MAY), (REVIEWER, REVIEWER_MAY)):
        wanted = Q()
        for app, codename in (*look, *more):
            wanted |= Q(content_type__app_label=app, codename=codename)
        role, _created = Group.objects.get_or_create(name=name)
        role.permissions.set(Permission.objects.filter(wanted))
