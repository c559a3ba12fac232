"""Vectors over REST: stored, searched, listed, deleted."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.core.paging import TOTAL_COUNT
from adiuva.core.rest import error_responses, user_id
from adiuva.vault import vectors
from adiuva.vault.models import Vector, VectorSpace
from adiuva.vault.serializers import (
    DeletedVectorsSerializer,
    FoundVectorsSerializer,
    SpaceSerializer,
    StoredVectorSerializer,
    UpsertedSerializer,
    UpsertSerializer,
    VectorSearchSerializer,
    VectorsToDeleteSerializer,
)
from adiuva.vault.vectors import NewVector


def _valid(serializer: Any) -> Any:
    serializer.is_valid(raise_exception=True)
    return serializer.validated_data


class UpsertVectorsView(APIView):
    """Vectors that the client computed."""

    @extend_schema(
        summary="Store vectors, in place of those with the same ids",
        operation_id="storage_vectors_upsert",
        request=UpsertSerializer,
        responses={200: UpsertedSerializer, **error_responses(400, 401, 402, 403, 409, 413, 507)},
    )
    def post(self, request: Request) -> Response:
        """Store all vectors or none. The server sees vectors, tags and sizes; the client seals what `blob` holds."""
        given = _valid(UpsertSerializer(data=request.data))
        new = [
            NewVector.of(f"vectors.{number}.vector", **each) for number, each in enumerate(given["vectors"])
        ]
        stored = vectors.upsert(user_id=user_id(request), space=given["space"], given=new)
        return Response({"upserted": stored})


class SearchVectorsView(APIView):
    """The nearest ones."""

    @extend_schema(
        summary="Find the nearest vectors of a space",
        operation_id="storage_vectors_search",
        request=VectorSearchSerializer,
        responses={200: FoundVectorsSerializer, **error_responses(400, 401)},
    )
    def post(self, request: Request) -> Response:
        """Search exactly, by cosine similarity, the best first. A space without vectors has none."""
        given = _valid(VectorSearchSerializer(data=request.data))
        found = vectors.search(
            user_id=user_id(request),
            space=given["space"],
            vector=vectors.parse(given["vector"]),
            top_k=given["top_k"],
            tags=given["tags"],
            min_score=given.get("min_score"),
        )
        return Response(FoundVectorsSerializer({"results": found}).data)


class VectorsView(ListAPIView[Vector]):
    """The vectors that are stored in a space."""

    serializer_class = StoredVectorSerializer
    queryset = Vector.objects.none()
    delete_takes_body = True

    def get_queryset(self) -> Any:
        number = _valid(SpaceSerializer(data=self.request.query_params))["space"]
        # Looked up first, because PostgreSQL reads the vectors of a known space in their order, by an index.
        space = VectorSpace.objects.of(user_id(self.request)).filter(space=number).first()
        rows = Vector.objects.filter(space=space) if space else Vector.objects.none()
        return rows.defer("blob", "vector").order_by("number")

    @extend_schema(
        summary="The vectors of a space, oldest first",
        operation_id="storage_vectors_list",
        parameters=[TOTAL_COUNT, OpenApiParameter("space", int, description="0 without it.")],
        responses={200: StoredVectorSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """List ids and checksums, which a client compares with its own."""
        return self.list(request, *args, **kwargs)

    @extend_schema(
        summary="Delete vectors",
        operation_id="storage_vectors_destroy",
        request=VectorsToDeleteSerializer,
        responses={200: DeletedVectorsSerializer, **error_responses(400, 401)},
    )
    def delete(self, request: Request) -> Response:
        """Delete vectors by their ids; with `all` the whole space, whose dimensions are free again."""
        given = _valid(VectorsToDeleteSerializer(data=request.data))
        ids = None if given["all"] else given["ids"]
        deleted = vectors.delete(user_id=user_id(request), space=given["space"], ids=ids)
        return Response({"ok": True, "deleted": deleted})
