"""REST views of conversations, and of a whole turn in one request. Every query starts from the request's user."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson
from asgiref.sync import async_to_sync
from django.db import close_old_connections
from django.urls import reverse
from django.utils.translation import gettext, ngettext
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.core.browsable_api import PageAction, PageRow, undo_action
from adiuva.core.errors import AdiuvaError, Invalid, Unavailable
from adiuva.core.paging import TOTAL_COUNT, PreparedList
from adiuva.core.representation import rows_of
from adiuva.core.rest import Done, error_responses, user_id
from adiuva.devices.link_errors import DeviceOffline
from adiuva.devices.protocol import HistoryMessage, StreamEnd
from adiuva.llm.errors import ModelError
from chat import conversations, turn_undo
from chat.device_choice import find_device
from chat.end_messages import end_message, unsaid_end_message
from chat.models import AssistantKind, Conversation
from chat.request import ChatRequest
from chat.serializers import (
    AnswerSerializer,
    ChatSerializer,
    ConversationChangesSerializer,
    ConversationDetailSerializer,
    ConversationSerializer,
    FailedSerializer,
    TurnUndoneSerializer,
    TurnUndoStoppedSerializer,
)
from chat.untrusted_text import one_line

if TYPE_CHECKING:
    from chat.whole_turns import TurnResult

_CONVERSATIONS: Final = PreparedList(lambda user_id: Conversation.objects.of(user_id).defer("summary"))


@extend_schema_view(
    list=extend_schema(
        summary="Your conversations, the latest first",
        parameters=[TOTAL_COUNT],
        responses={200: ConversationSerializer(many=True), **error_responses(400, 401)},
    ),
    retrieve=extend_schema(
        summary="One conversation with its messages",
        parameters=[
            OpenApiParameter(
                "after", int, description="The messages after this `seq`; at most 1,000 come at once."
            )
        ],
        responses={200: ConversationDetailSerializer, **error_responses(400, 401, 404)},
    ),
)
class ConversationViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[Conversation]):
    """What you and the assistant said, kept under your own key."""

    page_for_people = True
    serializer_class = ConversationSerializer
    queryset = Conversation.objects.none()

    def get_queryset(self) -> Any:
        mine = _CONVERSATIONS.of(user_id(self.request))
        return mine if self.action == "list" else mine.rows

    def page_rows(self, data: Mapping[str, Any]) -> list[PageRow]:
        """Return the turns that changed something, each below the message that asked for it."""
        texts = {message["seq"]: message["text"] for message in data.get("messages", ())}
        return [
            PageRow(
                title=one_line(texts.get(turn["seq"])) or gettext("Nobody's message began it"),
                about=gettext("undone")
                if turn["undone_at"]
                else ngettext("%(count)d change", "%(count)d changes", turn["mutations"])
                % {"count": turn["mutations"]},
                actions=() if turn["undone_at"] else [_undo_turn(turn["request_id"])],
            )
            for turn in data.get("turns", ())
        ]

    def get_serializer_class(self) -> Any:
        return ConversationChangesSerializer if self.action == "partial_update" else ConversationSerializer

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self.get_queryset())
        assert page is not None and self.paginator is not None
        one = ConversationSerializer(context=_title_context(request, page))
        return self.paginator.get_paginated_response(rows_of(one, page))

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        after = request.query_params.get("after") or "0"
        if not (after.isascii() and after.isdigit() and len(after) < 19):
            raise Invalid("after is not the number of a message", fields={"after": ["Not a whole number."]})
        conversation: Conversation = self.get_object()
        said = conversations.read_messages(conversation, after=int(after))
        changing = conversations.read_changing_turns(conversation, after=int(after))
        context = _title_context(request, [conversation]) | {"messages": said, "turns": changing}
        # A plain dict: from DRF's own its pages would fill the form for PATCH with the row's sealed title.
        return Response(dict(ConversationDetailSerializer(conversation, context=context).data))

    @extend_schema(
        summary="Rename a conversation, or switch memory on or off for it",
        request=ConversationChangesSerializer,
        responses={200: ConversationSerializer, **error_responses(400, 401, 404)},
    )
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        conversation: Conversation = self.get_object()
        serializer = ConversationChangesSerializer(data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        changes = serializer.validated_data
        if "title" in changes:
            conversations.rename(conversation=conversation, title=changes["title"])
        if "memory" in changes:
            conversations.set_memory(conversation=conversation, on=changes["memory"])
        conversation.refresh_from_db()
        return Response(
            dict(ConversationSerializer(conversation, context=_title_context(request, [conversation])).data)
        )

    @extend_schema(
        summary="Delete a conversation and all that was said in it",
        responses={200: Done, **error_responses(401, 404)},
    )
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        conversations.delete(conversation=self.get_object())
        return Response({"ok": True})


def _undo_turn(request_id: str) -> PageAction:
    return undo_action(reverse("turn-undo", args=[request_id]))


def _title_context(request: Request, rows: Iterable[Conversation]) -> dict[str, Any]:
    return {"titles": conversations.open_titles(rows, cipher_for(user_id(request)))}


# ── A whole turn ────────────────────────────────────────────────────────────────────────────────────────


class TurnFailed(AdiuvaError):
    """A turn ended with an error. The response holds its text and changes until then."""

    def __init__(self, code: str, message: str, **so_far: Any) -> None:
        super().__init__(message, **so_far)
        self.code, self.status = code, _STATUS_BY_CODE.get(code, 500)


def _statuses(kind: type[ModelError]) -> Iterator[tuple[str, int]]:
    yield kind.code, kind.status
    for narrower in kind.__subclasses__():
        yield from _statuses(narrower)


_STATUS_BY_CODE: Final = {
    **dict(_statuses(ModelError)),
    DeviceOffline.code: DeviceOffline.status,
    NoSuchUser.code: NoSuchUser.status,
    "server_restarting": Unavailable.status,
}
_FAILURE_TEXTS: Final = {
    500: "The turn broke off on the server.",
    502: "The model could not answer.",
    503: "The model or the server is away for now.",
    504: "The model did not answer in time.",
}


class ChatView(GenericAPIView[Any]):
    """Ask the assistant. It works with the device that you name, or else with the one that was seen last; the answer
    says which it was. Without a device it answers from `context`.

    The device socket answers as it goes; here the answer comes in the end, with what was changed on the device.
    """

    page_for_people = True
    serializer_class = ChatSerializer

    def page_actions(self, data: Mapping[str, Any]) -> list[PageAction]:
        return [_undo_turn(data["request_id"])] if data.get("mutations") else []

    @extend_schema(
        summary="Ask the assistant, and wait for its whole answer",
        operation_id="chat",
        responses={
            200: AnswerSerializer,
            **error_responses(400, 401, 404, 409, 429),
            **{status: OpenApiResponse(FailedSerializer, words) for status, words in _FAILURE_TEXTS.items()},
        },
    )
    def post(self, request: Request) -> Response:
        from chat import (
            whole_turns,
        )  # imports LangChain, which commands that only load the URLs do not need

        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        chat_request = _chat_request(user_id(request), serializer.validated_data)
        close_old_connections()  # a turn may take minutes, and others wait for the pool's connections
        answer = async_to_sync(whole_turns.run_to_end)(chat_request)
        return Response(_response_body(answer, chat_request.request_id))


class TurnUndoView(APIView):
    """Take back on the device what a turn inserted, updated and deleted there, and what it did to the memory."""

    page_for_people = True

    @extend_schema(
        summary="Take back what a turn changed, on the device and in your memory",
        operation_id="chat_turn_undo",
        request=None,
        responses={
            200: TurnUndoneSerializer,
            **error_responses(401, 404, 409),
            503: OpenApiResponse(TurnUndoStoppedSerializer, "The device is not connected, or went."),
            504: OpenApiResponse(TurnUndoStoppedSerializer, "The device did not answer in time."),
        },
    )
    def post(self, request: Request, request_id: str) -> Response:
        """Rows that you have edited since stay, and so do new rows that something else refers to; they are named. A
        deleted row comes back under a new id. The device has to be connected. You may call this again: the answer sums
        up all rows. Turns can be undone for 30 days. After the rows, the turn's changes to your memory are taken back
        as well; what you asked to forget in it was deleted for good.
        """
        close_old_connections()  # it may take a while, and others wait for the pool's connections
        done = async_to_sync(turn_undo.undo)(user_id=user_id(request), request_id=request_id)
        return Response(TurnUndoneSerializer(done.body()).data)


def _response_body(answer: TurnResult, request_id: str) -> dict[str, Any]:
    """Return the body of the response. Raises TurnFailed if the turn ended with an error."""
    so_far: dict[str, Any] = {
        "request_id": request_id,
        "response": answer.text,
        "mutations": [mutation.model_dump() for mutation in answer.mutations],
        "conversation_id": answer.conversation_id,
        "finish": answer.finish,
        "usage": answer.usage.model_dump(exclude_none=True),
        "device_id": answer.device_id,
        "notices": answer.notices,
    }
    end = StreamEnd.model_validate({"request_id": "", "finish": answer.finish, "code": answer.code})
    if answer.finish == "error":
        raise TurnFailed(answer.code, end_message(end), **so_far)
    if why := unsaid_end_message(end):  # older clients show nothing but the response
        so_far["response"] = f"{answer.text}\n\n{why}".lstrip()
    if answer.retry_at is not None:
        so_far["retry_at"] = answer.retry_at.isoformat()
    return so_far | ({"code": answer.code} if answer.code else {})


def _chat_request(user_id: uuid.UUID, values: dict[str, Any]) -> ChatRequest:
    context = dict(values.get("context") or {})
    history = context.pop("conversation_history", None) or ()
    known = {name: value for name, value in context.items() if value not in (None, "", [], {})}
    return ChatRequest(
        user_id=user_id,
        request_id=values.get("request_id") or uuid.uuid4().hex,
        kind=AssistantKind.HOME,
        message=values["message"],
        device_id=find_device(user_id, values["device_id"]) if values.get("device_id") else None,
        history=tuple(HistoryMessage(**message) for message in history),
        conversation_id=values.get("conversation_id") or None,
        context=orjson.dumps(known).decode() if known else "",
        memory=values["memory"],
        busy=values["busy"],
    )
