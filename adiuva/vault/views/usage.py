"""The view of how much an account stores."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.rest import error_responses, user_id
from adiuva.vault import limits
from adiuva.vault.models import Backup, Record, Vector
from adiuva.vault.serializers import StorageUsageSerializer


class UsageView(APIView):
    """How much you store."""

    @extend_schema(
        summary="How much you store, and may",
        operation_id="storage_usage",
        responses={200: StorageUsageSerializer, **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        user = user_id(request)
        amounts = limits.amounts().amounts(user)
        shown: dict[str, Any] = {}
        for name, kind in (("storage", "storage_bytes"), ("backup", "backup_bytes"), ("vectors", "vectors")):
            used, reserved, limit = amounts.get(kind, (0, 0, None))
            shown[name] = {"used": used, "reserved": reserved, "limit": limit}
        mine, kept = Record.objects.of(user).live(), Backup.objects.of(user)
        found = Vector.objects.of(user)
        damaged = sum(rows.filter(corrupt=True).count() for rows in (mine, kept, found))
        return Response({**shown, "records": mine.count(), "backups": kept.count(), "corrupt": damaged})
