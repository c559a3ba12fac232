"""The URLs of the project, and some that fail in ways that users must never see as such."""

from __future__ import annotations

from typing import Any

import redis.exceptions
from django.core.exceptions import PermissionDenied, SuspiciousOperation, ValidationError
from django.db import OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from rest_framework import serializers
from rest_framework.exceptions import ValidationError as RestValidationError
from rest_framework.generics import ListAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva import urls
from adiuva.accounts.models import User
from adiuva.core import errors


class QuotaExceeded(errors.AdiuvaError):
    code, status = "quota_exceeded", 402


FAILURES: dict[str, Exception] = {
    "quota": QuotaExceeded("agents are limited to 3 on this plan", limit=3),
    "conflict": errors.Conflict("it runs already", run_id="42"),
    "later": errors.Unavailable("the model is away", retry_after_s=7),
    "not-found": Http404("No Secret matches the given query."),
    "forbidden": PermissionDenied("internal detail"),
    "model": ValidationError({"name": ["Too long."]}),
    "whole-model": ValidationError("Start must be before end."),
    "nested": RestValidationError(
        {"files": [{}, {"path": ["Bad."]}], "filter": {"date": {"from": ["Late."]}}}
    ),
    "database": OperationalError("connection to server at 10.0.0.7 failed"),
    "redis": redis.exceptions.ConnectionError("Error 111 connecting to 10.0.0.8"),
    "suspicious": SuspiciousOperation("internal detail"),
    "bug": RuntimeError("a secret value"),
}


class Fail(APIView):
    permission_classes = [AllowAny]

    def get(self, request: Request, how: str) -> Response:
        raise FAILURES[how]


class Echo(APIView):
    """Hands the body back, as an endpoint would that forgot to check it."""

    permission_classes = [AllowAny]

    def post(self, request: Request) -> Response:
        return Response({"keys": sorted(request.data.keys())})


class UserEmailSerializer(serializers.ModelSerializer[User]):
    class Meta:
        model = User
        fields = ["email"]


class Users(ListAPIView[User]):
    permission_classes = [AllowAny]
    serializer_class = UserEmailSerializer

    def get_queryset(self) -> Any:
        return User.objects.filter(email__startswith=self.request.query_params["of"]).order_by("email")


def plain_bug(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a secret value")


urlpatterns = [
    path("api/v1/fail/<str:how>", Fail.as_view()),
    path("api/v1/echo", Echo.as_view()),
    path("api/v1/users", Users.as_view()),
    path("api/v1/plain-bug", plain_bug),
    path("page-with-a-bug", plain_bug),
    *urls.urlpatterns,
]
handler400, handler403 = urls.handler400, urls.handler403
handler404, handler500 = urls.handler404, urls.handler500
