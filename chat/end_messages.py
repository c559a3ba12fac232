"""Messages for how a turn ended, for clients that do not know the codes, in the active language."""

from __future__ import annotations

from typing import Final

from django.utils.translation import gettext, gettext_noop

from adiuva.devices.protocol import StreamEnd

_MESSAGES: Final = {
    "device_offline": gettext_noop("Your device is not connected."),
    "unknown_device": gettext_noop("None of your devices has the id that this request names."),
    "conversation_not_found": gettext_noop("This conversation no longer exists."),
    "conversation_busy": gettext_noop("Another request of this conversation is still being answered."),
    "invalid": gettext_noop("This message is empty or too long."),
    "bad_frame": gettext_noop("This request could not be read."),
    "too_deep": gettext_noop("This request could not be read."),
    "number_too_large": gettext_noop("This request could not be read."),
    "too_many_requests": gettext_noop(
        "Several of your requests are still running. Please wait for one of them to end."
    ),
    "throttled": gettext_noop("Your plan allows no more requests for now. Please try again in a minute."),
    "model_not_configured": gettext_noop("This server has no model configured."),
    "model_rate_limited": gettext_noop("The model is overloaded right now. Please try again in a minute."),
    "model_timeout": gettext_noop("The model did not answer in time. Please try again."),
    "model_interrupted": gettext_noop("The model's answer broke off. Please try again."),
    "too_many_model_calls": gettext_noop(
        "This took more steps than one request may have, so I stopped. What was done so far stays."
    ),
    "budget_spent": gettext_noop("This month's allowance for the assistant is used up."),
    "work_budget_spent": gettext_noop(
        "This has cost as much as one answer may, so I stopped. What was done so far stays."
    ),
    "answer_repeats": gettext_noop(
        "The model repeated itself, so I stopped. Please ask again, perhaps in other words."
    ),
    "same_call_fails": gettext_noop(
        "The same step failed again and again, so I stopped. What was done so far stays."
    ),
    "deadline": gettext_noop("This took too long, so I stopped. What was done so far stays."),
    "answer_too_long": gettext_noop("The answer grew too long, so I stopped."),
    "answer_cut_off": gettext_noop(
        "The model's answer was cut off at its length limit. Ask for the rest, or for something shorter."
    ),
    "content_filter": gettext_noop("The model's provider refuses to answer this."),
    "model_empty": gettext_noop("The model gave no answer, twice. What was done so far stays."),
    "not_saved": gettext_noop("The answer could not be saved."),
    "unavailable": gettext_noop("The server cannot do this right now. Please try again in a moment."),
    "server_restarting": gettext_noop("The server is restarting. Please try again in a moment."),
    "request_id_reused": gettext_noop("Another request was made under the same id. Please ask again."),
    "stream_expired": gettext_noop("The answer is no longer stored here. Please ask again."),
    "turn_lost": gettext_noop("The server lost this request. Please check what was done, and ask again."),
}
_MODEL_FAILED: Final = gettext_noop("The model cannot be reached right now. Please try again later.")
_UNKNOWN_CODE: Final = gettext_noop("Something went wrong on the server. Please try again.")
# The answer itself ends with these, for clients of both protocols and in REST: a model that answers with nothing must
# not leave the user with nothing.
SAID_IN_ANSWER: Final = frozenset(
    {
        "budget_spent",
        "work_budget_spent",
        "answer_repeats",
        "same_call_fails",
        "answer_cut_off",
        "content_filter",
        "model_empty",
    }
)


def end_message(end: StreamEnd) -> str:
    """Return why a turn ended without a complete answer; "" if it ended with one."""
    if end.finish not in {"error", "limit"}:
        return ""
    return message_of(end.code or "")


def unsaid_end_message(end: StreamEnd) -> str:
    """Return what `end_message` does, or "" if the answer says it already."""
    return "" if end.code in SAID_IN_ANSWER else end_message(end)


def said_in_answer(code: str, *, follows_up: bool) -> str:
    """Return the message about a turn's end that stands below its answer, or "". `follows_up`: nobody began it."""
    if follows_up and code == "budget_spent":
        # Perhaps only the share of such turns is used up, and the user has money still.
        return gettext("I could not go on with it by myself.")
    return message_of(code) if code in SAID_IN_ANSWER else ""


def message_of(code: str) -> str:
    """Return the meaning, in words, of a code of a turn's end."""
    text = _MESSAGES.get(code) or (_MODEL_FAILED if code.startswith("model_") else _UNKNOWN_CODE)
    return gettext(text)
