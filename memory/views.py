"""REST API of memory: its owner reads, corrects and forgets all of it. Every query starts from the request's user.

Content and questions are sent in bodies only, since URLs end up in logs and browser histories.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from django.utils.translation import gettext
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from adiuva.accounts.keys import cipher_for
from adiuva.core.browsable_api import PageAction
from adiuva.core.crypto import UserCipher
from adiuva.core.paging import TOTAL_COUNT, PreparedList
from adiuva.core.representation import rows_of
from adiuva.core.rest import Done, Problem, error_responses, user_id
from memory import entries, forgetting, preferences, search, sent_texts, taking_back
from memory.entries import BY_HAND, EntryDetails, RememberOutcome
from memory.models import Entry, EntryQuerySet, Memory, Receipt, SourceKind, Tier
from memory.policy_serializers import PolicySerializer, ReceiptQuerySerializer, ReceiptSerializer
from memory.serializers import (
    CorrectionSerializer,
    EntryDetailSerializer,
    EntryQuerySerializer,
    EntrySerializer,
    ForgetSerializer,
    ForgottenSerializer,
    NewEntrySerializer,
    SearchHitSerializer,
    SearchSerializer,
    SourceSerializer,
    TakeBackSerializer,
    TakenBackSerializer,
    TextSerializer,
    VectorSerializer,
)

# The most sources, and former versions, shown with an entry.
_MAX_SHOWN: Final = 100
_TIER: Final = OpenApiParameter("tier", str, OpenApiParameter.PATH, enum=Tier.values)


def _of_tier(user_id: Any, tier: Any) -> EntryQuerySet:
    return Entry.objects.of(user_id).filter(tier=tier).defer("terms")


# By the query's `current`.
_LISTS: Final[Mapping[str, PreparedList[Entry]]] = {
    "true": PreparedList(lambda user_id, tier: _of_tier(user_id, tier).current()),
    "proposed": PreparedList(
        lambda user_id, tier: _of_tier(user_id, tier).filter(valid_to=None, proposed=True)
    ),
    "false": PreparedList(lambda user_id, tier: _of_tier(user_id, tier).filter(valid_to__isnull=False)),
    "all": PreparedList(_of_tier),
}


# More than 15 methods: an action for each route, and those that REST framework expects of a view set.
@extend_schema(parameters=[_TIER])
@extend_schema_view(
    list=extend_schema(
        summary="List the entries of a tier, latest first",
        parameters=[EntryQuerySerializer, TOTAL_COUNT],
        responses={200: EntrySerializer(many=True), **error_responses(400, 401)},
    ),
    retrieve=extend_schema(
        summary="Get an entry with its sources and history",
        responses={200: EntryDetailSerializer, **error_responses(401, 404)},
    ),
)
class EntryViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[Entry]):
    """What Adiuva remembers of you. A corrected entry keeps its id; its former content becomes history."""

    page_for_people = True
    page_without_form = ("confirm",)
    serializer_class = EntrySerializer
    queryset = Entry.objects.none()

    def page_actions(self, data: Mapping[str, Any]) -> list[PageAction]:
        if data.get("state") != "proposed":
            return []
        confirm = reverse("memory-confirm", kwargs={"tier": self.tier, "pk": data["id"]})
        return [PageAction("confirm", gettext("Confirm"), confirm)]

    @cached_property
    def tier(self) -> Tier:
        return Tier(self.kwargs.get("tier", Tier.CORE))

    @cached_property
    def cipher(self) -> UserCipher:
        return cipher_for(user_id(self.request))

    def get_queryset(self) -> Any:
        mine = user_id(self.request), str(self.tier)
        if self.action != "list":
            return _of_tier(*mine)
        current = self.request.query_params.get("current") or "true"
        if current not in _LISTS:
            _query(EntryQuerySerializer, self.request)  # raises the query's problem
        return _LISTS[current].of(*mine)

    def get_serializer_class(self) -> Any:
        forms = {"create": NewEntrySerializer, "partial_update": CorrectionSerializer}
        return forms.get(self.action, EntrySerializer)

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "tier": self.tier}

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self._page(self.get_queryset())

    @extend_schema(
        summary="Add an entry by hand",
        request=NewEntrySerializer,
        responses={
            201: EntrySerializer,
            200: OpenApiResponse(
                EntrySerializer, "It was known already, or the key's former value became history."
            ),
            **error_responses(400, 401, 409),
        },
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Fails with `memory_off` while the memory is switched off, and with `memory_full` if the tier is full."""
        values = self._body()
        content, key = values.pop("content"), values.pop("key", None)
        if self.tier == Tier.PROACTIVE:
            values.setdefault("confidence", 1.0)
        preferences.refuse_if_off(user_id(request))
        remembered = entries.remember(
            user_id=user_id(request),
            tier=self.tier,
            content=content,
            key=key,
            source=BY_HAND,
            details=EntryDetails(**values),
        )
        return self._row(remembered.entry, 201 if remembered.outcome is RememberOutcome.NEW else 200)

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        entry = self.get_object()
        context = {
            "cipher": self.cipher,
            "sources": entry.sources.order_by("-at", "-id")[:_MAX_SHOWN],
            "history": entries.history_of(entry).defer("terms")[:_MAX_SHOWN],
        }
        return Response(EntryDetailSerializer(entry, context=context).data)

    @extend_schema(
        summary="Correct an entry",
        request=CorrectionSerializer,
        responses={200: EntrySerializer, **error_responses(400, 401, 404, 409)},
    )
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The former content becomes history. If another entry already has the content or the key, the answer is 409
        and `entry_id` names that entry."""
        entry = self.get_object()
        return self._row(entries.correct(entry=entry, source=BY_HAND, **self._body()))

    @extend_schema(
        summary="Forget an entry with its history", responses={200: Done, **error_responses(401, 404)}
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        forgetting.forget(user_id=user_id(request), ids=[self.get_object().pk])
        return Response({"ok": True})

    @extend_schema(
        summary="Confirm a proposal",
        request=None,
        responses={200: EntrySerializer, **error_responses(401, 404, 409)},
    )
    @action(detail=True, methods=["post"])
    def confirm(self, request: Request, **kwargs: Any) -> Response:
        """The answer is the entry that says it from now on: of a proposal that replaces an entry, that entry, whose
        former content becomes history. To decline a proposal, DELETE it."""
        return self._row(entries.confirm(entry=self.get_object()))

    @extend_schema(
        summary="List the sources of an entry, latest first",
        parameters=[TOTAL_COUNT],
        responses={200: SourceSerializer(many=True), **error_responses(400, 401, 404)},
    )
    @action(detail=True, methods=["get"])
    def sources(self, request: Request, **kwargs: Any) -> Response:
        sources: Any = self.get_object().sources.order_by("-at", "-id")
        page: Any = self.paginate_queryset(sources)
        return self.get_paginated_response(
            SourceSerializer(page, many=True, context={"cipher": self.cipher}).data
        )

    @extend_schema(
        summary="List the former versions of an entry, latest first",
        parameters=[TOTAL_COUNT],
        responses={200: EntrySerializer(many=True), **error_responses(400, 401, 404)},
    )
    @action(detail=True, methods=["get"])
    def history(self, request: Request, **kwargs: Any) -> Response:
        return self._page(entries.history_of(self.get_object()).defer("terms"))

    def _body(self) -> dict[str, Any]:
        serializer = self.get_serializer(data=self.request.data)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def _page(self, rows: Any) -> Response:
        page = self.paginate_queryset(rows)
        assert page is not None
        return self.get_paginated_response(rows_of(EntrySerializer(context={"cipher": self.cipher}), page))

    def _row(self, entry: Entry, status: int = 200) -> Response:
        """Answer with the entry as it is stored: the database has set some of its times."""
        stored = entries.get_entry(user_id(self.request), entry.pk)
        return Response(dict(EntrySerializer(stored, context={"cipher": self.cipher}).data), status=status)


class _FormView(GenericAPIView[Any]):
    def body(self, request: Request) -> dict[str, Any]:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        found: dict[str, Any] = serializer.validated_data
        return found


class SearchView(_FormView):
    """Search your memory. The question is sent in the body, so that it is in no log and no browser history."""

    page_for_people = True
    serializer_class = SearchSerializer
    pagination_class = None

    @extend_schema(
        summary="Search your memory",
        operation_id="memory_search",
        responses={200: SearchHitSerializer(many=True), **error_responses(400, 401)},
    )
    def post(self, request: Request) -> Response:
        form, me = self.body(request), user_id(request)
        tiers = (Tier(form["tier"]),) if "tier" in form else tuple(Tier)
        hits = search.embed_and_search(user_id=me, question=form["q"], tiers=tiers, limit=form["limit"])
        context = {"cipher": cipher_for(me)}
        return Response(
            [{**EntrySerializer(hit.entry, context=context).data, "score": hit.score} for hit in hits]
        )


class ForgetView(_FormView):
    """Forget what is known from one source, or everything. To forget one entry, DELETE it.

    Entries that have other sources as well stay. Entries made from several sources are deleted with any of them.
    """

    page_for_people = True
    serializer_class = ForgetSerializer

    @extend_schema(
        summary="Forget a source, or everything",
        operation_id="memory_forget",
        responses={200: ForgottenSerializer, **error_responses(400, 401)},
    )
    def post(self, request: Request) -> Response:
        form, me = self.body(request), user_id(request)
        if form["everything"]:
            count = forgetting.forget_everything(user_id=me)
        else:
            source = form["source"]
            count = forgetting.forget_source(
                user_id=me,
                kind=SourceKind(source["kind"]),
                source_id=source.get("id"),
                seq=source.get("seq"),
            )
        return Response({"ok": True, "forgotten": count})


class TakeBackView(_FormView):
    """Take back what one message did to your memory: what it added is deleted, what it replaced or ended holds again.

    What you asked to forget was deleted for good and does not come back.
    """

    page_for_people = True
    serializer_class = TakeBackSerializer

    @extend_schema(
        summary="Take back what a message did to your memory",
        operation_id="memory_take_back",
        responses={200: TakenBackSerializer, **error_responses(400, 401)},
    )
    def post(self, request: Request) -> Response:
        source = self.body(request)["source"]
        done = taking_back.take_back(
            user_id=user_id(request),
            kind=SourceKind(source["kind"]),
            source_id=source.get("id"),
            seq=source.get("seq"),
        )
        return Response({"ok": True, "deleted": done.deleted, "restored": done.restored})


class PolicyView(_FormView):
    """Whether your memory is on, and which model providers may read which tier."""

    page_for_people = True
    serializer_class = PolicySerializer

    @extend_schema(
        summary="Get your memory's switch and policy",
        operation_id="memory_policy",
        responses={200: PolicySerializer, **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        return Response(_policy(preferences.get_memory(user_id(request))))

    @extend_schema(
        summary="Set your memory's switch and policy",
        operation_id="memory_policy_set",
        responses={200: PolicySerializer, **error_responses(400, 401)},
    )
    def put(self, request: Request) -> Response:
        """Any provider may read a tier that is omitted."""
        form = self.body(request)
        tiers = {tier: form["tiers"].get(tier) for tier in Tier}
        return Response(
            _policy(
                preferences.set_preferences(user_id=user_id(request), enabled=form["enabled"], tiers=tiers)
            )
        )

    @extend_schema(
        summary="Change your memory's switch, or the policy of some tiers",
        operation_id="memory_policy_change",
        responses={200: PolicySerializer, **error_responses(400, 401)},
    )
    def patch(self, request: Request) -> Response:
        """A tier that is omitted keeps its policy."""
        serializer = self.get_serializer(data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        form = serializer.validated_data
        tiers = {Tier(name): providers for name, providers in form.get("tiers", {}).items()}
        return Response(
            _policy(
                preferences.set_preferences(
                    user_id=user_id(request), enabled=form.get("enabled"), tiers=tiers
                )
            )
        )


def _policy(memory: Memory) -> dict[str, Any]:
    return {
        "enabled": memory.enabled,
        "tiers": preferences.providers_by_tier(memory),
        "providers": preferences.configured_providers(),
    }


class ReceiptsView(ListAPIView[Receipt]):
    """What was sent to model providers: when, to whom, and which entries. Their content is not stored a second time."""

    page_for_people = True
    serializer_class = ReceiptSerializer
    queryset = Receipt.objects.none()

    def get_queryset(self) -> Any:
        filters = _query(ReceiptQuerySerializer, self.request)
        return Receipt.objects.filter(user_id=user_id(self.request), **filters)

    @extend_schema(
        summary="List receipts of entries sent to model providers, latest first",
        operation_id="memory_receipts",
        parameters=[ReceiptQuerySerializer, TOTAL_COUNT],
        responses={200: ReceiptSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.list(request, *args, **kwargs)


def _query(form: type[Any], request: Request) -> dict[str, Any]:
    serializer = form(data={name: value for name, value in request.query_params.items() if value})
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


# ── Vectors ─────────────────────────────────────────────────────────────────────────────────────────────


class EmbedView(_FormView):
    """Compute a text's vector with the configured embedding model or the lexical one. Nothing of it is stored."""

    serializer_class = TextSerializer

    @extend_schema(
        summary="Compute the vector of a text, which its provider reads",
        operation_id="storage_vectors_embed",
        responses={
            200: VectorSerializer,
            **error_responses(400, 401, 403, 503),
            502: OpenApiResponse(Problem, "The model could not answer."),
            504: OpenApiResponse(Problem, "The model did not answer in time."),
        },
    )
    def post(self, request: Request) -> Response:
        """This shows the text to the server, and to the provider that `provider` names; a receipt is kept of that. If
        your memory's policy keeps any tier from a provider, the provider does not get the text (403
        `provider_withheld`). Texts that the vault should keep unread are better embedded on the device.
        """
        found = sent_texts.embed(user_id=user_id(request), text=self.body(request)["text"])
        return Response({"vector": found.vector, "model": found.model, "provider": found.provider or None})
