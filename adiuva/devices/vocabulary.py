"""Names of the device socket, explained: capabilities, filters, close codes, error codes. docs/protocol.md shows them.

Like the frames themselves, this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adiuva.devices.codec import MAX_DEPTH, MAX_FRAME_BYTES, PART_BYTES
from adiuva.devices.protocol import MAX_BATCH, Close

PROTOCOL: Final = 2

LIMITS: Final[Mapping[str, tuple[int, str]]] = {
    "MAX_FRAME_BYTES": (MAX_FRAME_BYTES, "bytes of UTF-8 in a frame, in either direction"),
    "MAX_DEPTH": (MAX_DEPTH, "levels of lists and objects in a frame"),
    "MAX_BATCH": (MAX_BATCH, "calls in a `tool_batch`"),
    "PART_BYTES": (
        PART_BYTES,
        "bytes of UTF-8 of a file's content in one frame; longer content is sent in parts",
    ),
    "KEEP_RESULTS_DAYS": (30, "days for which a device with `dedupe` keeps the results of writes"),
    "KEEP_STREAM_MINUTES": (10, "minutes for which a stream can be resumed"),
}

CAPABILITIES: Final[Mapping[str, str]] = {
    "dedupe": "The device keeps the result of each write by the call's id, and answers a repeat with it. "
    "The server then repeats a write whose answer was lost; otherwise such a write is marked uncertain and shown.",
    "batch": "The device takes `tool_batch`. Otherwise each call comes in a frame of its own.",
    "manifest": "The device offers the files of a run by their hashes, and sends only what is asked for. "
    "Otherwise it sends every file in every run.",
    "approval": "The device shows `approval_request` to its user. Otherwise the question comes in the text, and the "
    "user's next message answers it.",
    "offset": "`select` takes `offset`. A result that is too large for a frame is then asked for piece by piece.",
    "origin": "An insert of a record that an agent found says in `origin` from which run and source it is, so that the "
    "device can show it, and offer a decision about all of a run.",
    "followups": "The device takes `turn_started`, `run_ended` and `conversation_changed`. Otherwise what came without "
    "a request is found with `GET /chat/conversations/{id}?after=`.",
}

FILTERS: Final[Mapping[str, tuple[str, str]]] = {
    "projectId": ("string", "rows whose column is this; likewise the next three"),
    "status": ("string", ""),
    "taskId": ("string", ""),
    "clientId": ("string", ""),
    "search": ("string", "rows in whose texts each of these words occurs, in upper or lower case"),
    "dueDateFrom": (
        "number",
        "milliseconds: rows that are due at this time or later (`dueDate`; `date` of timelines)",
    ),
    "dueDateTo": ("number", "milliseconds: rows that are due at this time or earlier"),
    "includeArchived": (
        "boolean",
        "projects: the archived ones too, which are left out unless `status` or this is given",
    ),
    "orderBy": (
        "string",
        "a column, `column desc` or `-column`; rows without a value come last. Without it the oldest come first",
    ),
}

CLOSE_CODES: Final[Mapping[str, tuple[int, str]]] = {
    "NOT_AUTHENTICATED": (
        Close.NOT_AUTHENTICATED,
        "Not signed in, or the session was ended. Refresh the token, then connect.",
    ),
    "ORIGIN_REFUSED": (Close.ORIGIN_REFUSED, "The page's origin may not connect. Do not try again."),
    "TIMEOUT": (
        Close.TIMEOUT,
        "No hello or no pong in time, or frames were not read. Connect again after a pause.",
    ),
    "SUPERSEDED": (
        Close.SUPERSEDED,
        "The same device connected again: the newer connection stays. Do not try again.",
    ),
    "TOO_LARGE": (Close.TOO_LARGE, "A frame was too large. Connect again, and do not send it again."),
    "TOO_MANY": (Close.TOO_MANY, "Too many bad frames or requests. Connect again after a minute."),
    "RESTARTING": (
        Close.RESTARTING,
        "The server restarts. Connect again within two seconds, at a random moment.",
    ),
}

# The codes of an `error` frame. `ref` names the frame that it is about.
FRAME_CODES: Final[Mapping[str, str]] = {
    "bad_json": "The frame is no JSON object, or not text.",
    "bad_frame": "A field is missing or wrong; the message names it.",
    "unknown_type": "There is no such frame. It costs nothing, so that a newer client may ask an older server.",
    "frame_too_large": "The frame is longer than `max_frame_bytes`.",
    "too_deep": "The frame nests too deep.",
    "number_too_large": "An integer does not fit into 64 bits.",
    "hello_first": "The first frame must be `device_hello`.",
    "hello_twice": "This connection has said hello.",
    "unknown_timezone": "Of `device_hello`: its `timezone` is not one of the IANA database. All else of it counts.",
    "run_not_active": "Of a run's frame: the run (`ref`) takes no files now. Stop sending them.",
    "not_running": "Of `request_cancel`, `request_steer`, `stream_resume` or `streams`: the server knows no such "
    "request, or it has ended. No `stream_end` follows.",
    "throttled": "Of `request_steer`: the user's plan allows no more requests for now.",
    "approval_over": "Of `approval_response`: it was answered before, or its time is over.",
    "unavailable": "The database, Redis or a disk of the server cannot be used for now.",
    "internal_error": "The server failed on this frame. Its operators can see why.",
}

# The values of `code` in a `stream_end`. A client shows the stream's text, and may act on these.
STREAM_CODES: Final[Mapping[str, str]] = {
    "device_offline": "No device, or not the named one, is connected.",
    "device_unreachable": "The device is connected and does not answer.",
    "unknown_device": "The account has no device of this id.",
    "conversation_not_found": "The account has no conversation of this id.",
    "request_taken": "Another user's request, or one of another kind, has this `request_id`.",
    "request_id_reused": "This `request_id` was used for another message.",
    "turn_is_running": "The conversation has a turn under way.",
    "conversation_busy": 'Of `busy: "reject"`: another request of the conversation is being answered.',
    "joined": 'With `stop`, of `busy: "steer"`: the turn that ran has read the message, and answers it.',
    "stream_expired": "What was missed is kept no longer. The conversation has the answer, if it was stored.",
    "turn_lost": "The server that worked on it failed. What had been changed on the device stays.",
    "server_restarting": "The server restarted meanwhile. Ask again.",
    "too_many_requests": "Too many requests of this connection or user are under way.",
    "throttled": "The user's plan allows no more requests for now.",
    "too_many_model_calls": "With `limit`: it took more model calls than one request may have.",
    "deadline": "With `limit`: it took too long.",
    "answer_too_long": "With `limit`: the answer grew too long.",
    "answer_cut_off": "With `limit`: the model ended at its own length limit.",
    "answer_repeats": "With `limit`: the model repeated itself.",
    "same_call_fails": "With `limit`: the same tool call failed again and again.",
    "content_filter": "With `limit`: the model's provider refuses to answer this.",
    "user_gone": "The account was deleted meanwhile.",
    "not_saved": "The answer could not be stored in its conversation.",
    "outcome_unknown": "It is not known whether a write was done.",
    "internal_error": "The server failed. Its operators can see why.",
    "unavailable": "Something that the server needs is away for now.",
    "model_unavailable": "The model cannot be reached.",
    "model_timeout": "The model did not answer in time.",
    "model_rate_limited": "The model takes no more requests for now.",
    "model_not_configured": "The server has no model, or its key is wrong.",
    "budget_spent": "This month's money for models is used up; the answer and `retry_at` say until when.",
    "work_budget_spent": "The answer has cost as much as the plan lets one cost; the answer says what was done.",
    "model_price_missing": "The server limits what models cost, and knows no price of this one.",
    "model_rejected": "The model refused the request.",
    "model_context_exceeded": "The conversation is too long for the model.",
    "model_interrupted": "The model's answer broke off.",
    "model_bad_output": "The model's answer could not be used; so with the next three.",
    "model_empty": "",
    "model_garbled": "",
    "model_error": "",
}

# The values of `notices` in a `stream_end`. More may come; a client shows those that it knows.
NOTICES: Final[Mapping[str, str]] = {
    "nothing_changed": "The answer claims a change that was asked for, and nothing was created, changed or deleted.",
    "left_out": "Earlier messages, or parts of what was read, did not fit the model's context window.",
    "no_tools": "The model cannot use tools: it could neither look at the user's data nor change it.",
    "other_model": "The configured model could not answer, and another one stood in: `usage.model`.",
    "budget_low": "Little is left of the month's allowance for models: `usage.percent_left`.",
}
