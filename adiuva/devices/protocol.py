"""Every frame of the device socket. This module is the contract: `manage.py protocol` generates the published JSON
Schema and TypeScript types from it, and it imports no framework. adiuva.devices.codec reads and writes the frames.

Frames that the server receives are tolerant (unknown keys are ignored); frames that it sends are closed. Fields and
frames marked with `since=2` are for clients whose hello says `"protocol": 2`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_BATCH: Final = 64

Action = Literal["select", "get", "insert", "update", "delete", "vector_upsert", "vector_search"]
TableName = Literal["tasks", "projects", "timelines", "notes", "taskComments", "clients"]
Domain = Literal["tasks", "timelines", "notes", "projects"]
Notice = Literal["nothing_changed", "left_out", "no_tools", "other_model", "budget_low"]
WRITES: Final[frozenset[str]] = frozenset({"insert", "update", "delete", "vector_upsert"})
SINCE_2: Final[dict[str, Any]] = {"since": 2}
_RECEIVED_2: Final = ConfigDict(extra="ignore", frozen=True, json_schema_extra=SINCE_2)
_SENT_2: Final = ConfigDict(extra="forbid", frozen=True, json_schema_extra=SINCE_2)

Id = Annotated[str, Field(min_length=1, max_length=200)]
Data = dict[str, Any]


class Close:
    """Close codes of the device socket."""

    NOT_AUTHENTICATED = 4401
    ORIGIN_REFUSED = 4403
    TIMEOUT = 4408
    SUPERSEDED = 4409
    TOO_LARGE = 4413
    TOO_MANY = 4429
    RESTARTING = 1012


class Received(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ── Client to server ────────────────────────────────────────────────────────────────────────────────────


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("no NUL in it")
    return text


# PostgreSQL's text has no NUL, and these are kept.
Name = Annotated[str, Field(max_length=200), AfterValidator(_without_nul)]
Remembered = Annotated[
    bool,
    Field(
        strict=True,
        description="false: nothing of this request is remembered, and nothing is recalled for it",
        json_schema_extra=SINCE_2,
    ),
]
NamedDevice = Annotated[
    Name | None,
    Field(
        description="whose data it is about, by its device_id; without it, the device that sends this",
        json_schema_extra=SINCE_2,
    ),
]
WhenBusy = Annotated[
    Literal["enqueue", "steer", "reject"] | None,
    Field(
        description="while another request of this conversation is answered: wait for its end (the default), join it "
        "at its next model call (stream_end with stop and the code joined, once the model has read it; if it ends "
        "before, this one is answered next), or be refused (error, conversation_busy)",
        json_schema_extra=SINCE_2,
    ),
]
RequestId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_nul)]


# The place where a client continues in a stream.
LastSeen = Annotated[
    int, Field(ge=-1, description="the last seq that was seen; seq begins at 0, so -1 is nothing yet")
]


class StreamPosition(Received):
    request_id: RequestId
    after: LastSeen


class DeviceHello(Received):
    type: Literal["device_hello"] = "device_hello"
    device_id: Annotated[Name, Field(min_length=1)]
    agent_ids: list[Id] = Field(default_factory=list, max_length=10_000)
    protocol: int = Field(default=1, ge=1, json_schema_extra=SINCE_2)
    name: Name | None = Field(default=None, json_schema_extra=SINCE_2)
    platform: Annotated[Name, Field(max_length=100)] | None = Field(default=None, json_schema_extra=SINCE_2)
    app_version: Annotated[Name, Field(max_length=100)] | None = Field(
        default=None, json_schema_extra=SINCE_2
    )
    capabilities: list[Annotated[str, AfterValidator(_without_nul)]] = Field(
        default_factory=list, max_length=50, json_schema_extra=SINCE_2
    )
    grants: list[Annotated[str, Field(max_length=4096), AfterValidator(_without_nul)]] | None = Field(
        default=None,
        max_length=100,
        description="folders that agents may read on this device, as absolute paths; shown to its owner",
        json_schema_extra=SINCE_2,
    )
    streams: list[StreamPosition] | None = Field(default=None, max_length=100, json_schema_extra=SINCE_2)
    timezone: Name | None = Field(
        default=None,
        description="the device's IANA zone, named to the user where the account has none of its own; one that is not "
        "known is answered with an error frame (unknown_timezone), and the connection stays",
        json_schema_extra=SINCE_2,
    )


class Pong(Received):
    type: Literal["pong"] = "pong"


class ToolResultBody(Received):
    id: Id
    row: Data | None = None
    rows: list[Data] | None = None
    results: list[Data] | None = None
    deleted: bool | None = None
    ok: bool | None = None
    error: str | None = None
    code: str | None = Field(
        default=None,
        description="with an error: too_large if the result does not fit into a frame; the server then asks for less. "
        "not_saved if nothing could be stored, such as on a full disk; the server may then send the call again later",
        json_schema_extra=SINCE_2,
    )


class ToolResult(ToolResultBody):
    type: Literal["tool_result"] = "tool_result"


class ToolBatchResult(Received):
    model_config = _RECEIVED_2
    type: Literal["tool_batch_result"] = "tool_batch_result"
    results: list[ToolResultBody] = Field(max_length=MAX_BATCH)


class ManifestFile(Received):
    path: str = Field(min_length=1, max_length=4096)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    mtime: int


class AgentManifest(Received):
    """May come in several frames; the final one says `last`. Each is answered with one `agent_fetch`."""

    model_config = _RECEIVED_2
    type: Literal["agent_manifest"] = "agent_manifest"
    run_id: Id
    files: list[ManifestFile]
    last: bool = True


class AgentFile(Received):
    path: str = Field(min_length=1, max_length=4096)
    name: str = Field(max_length=1024)
    content: str
    metadata: Data = Field(default_factory=dict)
    part: int | None = Field(default=None, ge=1, json_schema_extra=SINCE_2)
    parts: int | None = Field(default=None, ge=1, le=10_000, json_schema_extra=SINCE_2)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", json_schema_extra=SINCE_2)


class AgentData(Received):
    type: Literal["agent_data"] = "agent_data"
    run_id: Id
    files: list[AgentFile]
    batch: int | None = Field(default=None, ge=0, json_schema_extra=SINCE_2)


class AgentComplete(Received):
    """`errors` names the files that the device could not read: a sentence, or `{path, reason}`.

    `passed_over`: files of kinds that cannot be read and were not asked for by name, as suffix → number.
    """

    type: Literal["agent_complete"] = "agent_complete"
    run_id: Id
    files_read: int = Field(default=0, ge=0)
    errors: list[str | Data] = Field(default_factory=list)
    batches: int | None = Field(default=None, ge=0, json_schema_extra=SINCE_2)
    passed_over: dict[str, int] | None = Field(default=None, json_schema_extra=SINCE_2)


class HistoryMessage(Received):
    role: Literal["user", "assistant"]
    content: str


class HomeRequest(Received):
    type: Literal["home_request"] = "home_request"
    message: str = Field(min_length=1)
    conversation_history: list[HistoryMessage] | None = None
    request_id: RequestId | None = None
    conversation_id: Id | None = Field(default=None, json_schema_extra=SINCE_2)
    device_id: NamedDevice = None
    memory: Remembered = True
    busy: WhenBusy = None


class Scope(Received):
    type: Literal["task", "project", "note", "timeline", "workspace"]
    id: Id | None = None


class FloatingRequest(Received):
    type: Literal["floating_request"] = "floating_request"
    message: str = Field(min_length=1)
    scope: Scope
    request_id: RequestId | None = None
    conversation_id: Id | None = Field(default=None, json_schema_extra=SINCE_2)
    device_id: NamedDevice = None
    memory: Remembered = True
    busy: WhenBusy = None


class RequestCancel(Received):
    model_config = _RECEIVED_2
    type: Literal["request_cancel"] = "request_cancel"
    request_id: RequestId


class RequestSteer(Received):
    model_config = _RECEIVED_2
    type: Literal["request_steer"] = "request_steer"
    request_id: RequestId
    message: str = Field(min_length=1)


class StreamResume(Received):
    model_config = _RECEIVED_2
    type: Literal["stream_resume"] = "stream_resume"
    request_id: RequestId
    after: LastSeen


class ApprovalResponse(Received):
    model_config = _RECEIVED_2
    type: Literal["approval_response"] = "approval_response"
    id: Id
    approved: bool = Field(strict=True)


ClientFrame = Annotated[
    DeviceHello
    | Pong
    | ToolResult
    | ToolBatchResult
    | AgentManifest
    | AgentData
    | AgentComplete
    | HomeRequest
    | FloatingRequest
    | RequestCancel
    | RequestSteer
    | StreamResume
    | ApprovalResponse,
    Field(discriminator="type"),
]

# ── Server to client ────────────────────────────────────────────────────────────────────────────────────


class HelloAck(Sent):
    model_config = _SENT_2
    type: Literal["hello_ack"] = "hello_ack"
    session_id: str
    protocol: int
    ping_s: float
    max_frame_bytes: int
    max_inflight: int
    server_time: int = Field(description="milliseconds since the epoch")


class Ping(Sent):
    type: Literal["ping"] = "ping"


class Error(Sent):
    model_config = _SENT_2
    type: Literal["error"] = "error"
    code: str
    message: str
    ref: str | None = None


class Origin(Sent):
    """Origin of a record that an agent found."""

    model_config = _SENT_2
    run_id: str
    source: str = Field(description="the file or mail it was found in, as the run's journal names it")


class ToolCallBody(Sent):
    id: Id
    action: Action
    table: TableName | None = None
    data: Data | None = None
    filters: Data | None = None
    vector: list[float] | None = None
    limit: int | None = None
    offset: int | None = Field(
        default=None,
        description="rows of a select to pass over; only for devices with the capability `offset`",
        json_schema_extra=SINCE_2,
    )
    origin: Origin | None = Field(
        default=None,
        description="of an insert, if an agent found the record; only for devices with the capability `origin`",
        json_schema_extra=SINCE_2,
    )
    attempt: int | None = Field(default=None, json_schema_extra=SINCE_2)
    deadline_ms: int | None = Field(
        default=None, description="milliseconds the server waits for the answer", json_schema_extra=SINCE_2
    )


class ToolCall(ToolCallBody):
    type: Literal["tool_call"] = "tool_call"


class ToolBatch(Sent):
    model_config = _SENT_2
    type: Literal["tool_batch"] = "tool_batch"
    calls: list[ToolCallBody] = Field(max_length=MAX_BATCH)


class AgentRunConfig(Sent):
    paths: list[str]
    file_extensions: list[str]
    prompt_template: str
    data_types: list[str]


class AgentRun(Sent):
    type: Literal["agent_run"] = "agent_run"
    run_id: str
    agent_id: str
    config: AgentRunConfig


class AgentFetch(Sent):
    """The answer to one `agent_manifest`: the files that are to be sent. An empty list asks for nothing."""

    model_config = _SENT_2
    type: Literal["agent_fetch"] = "agent_fetch"
    run_id: str
    paths: list[str]


class AgentAck(Sent):
    model_config = _SENT_2
    type: Literal["agent_ack"] = "agent_ack"
    run_id: str
    batch: int


class AgentProgress(Sent):
    model_config = _SENT_2
    type: Literal["agent_progress"] = "agent_progress"
    run_id: str
    agent_id: str
    state: str
    files_seen: int
    files_done: int
    records_created: int
    eta_s: float | None = None
    passed_over: dict[str, int] | None = None


class AgentCancel(Sent):
    model_config = _SENT_2
    type: Literal["agent_cancel"] = "agent_cancel"
    run_id: str


class FloatingDomain(Sent):
    type: Literal["floating_domain"] = "floating_domain"
    request_id: str
    domain: Domain


class StreamStart(Sent):
    type: Literal["stream_start"] = "stream_start"
    request_id: str
    conversation_id: str | None = Field(default=None, json_schema_extra=SINCE_2)


class StreamText(Sent):
    type: Literal["stream_text"] = "stream_text"
    request_id: str
    chunk: str
    seq: int | None = Field(default=None, json_schema_extra=SINCE_2)


class StreamStatus(Sent):
    model_config = _SENT_2
    type: Literal["stream_status"] = "stream_status"
    request_id: str
    seq: int
    label: str


class ApprovalRequest(Sent):
    model_config = _SENT_2
    type: Literal["approval_request"] = "approval_request"
    id: str
    request_id: str
    action: str
    table: str
    summary: str
    expires_at: int = Field(description="milliseconds since the epoch")


class Mutation(Sent):
    action: Literal["insert", "update", "delete"]
    table: TableName
    data: Data = Field(
        description="the row as the device returned it; of a deleted one its title as well, if it was read"
    )


class Usage(Sent):
    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    cached_tokens: int | None = Field(
        default=None,
        description="The part of the input that the provider had in its cache; absent if it does not say.",
    )
    model: str | None = Field(
        default=None, description="The model that gave the answer, as the server's settings name it."
    )
    cost_micro: int | None = Field(
        default=None,
        description="The cost, in millionths of the server's currency; absent if the model has no price.",
    )
    percent_left: int | None = Field(
        default=None,
        description="The percentage left of the month's allowance for models; absent if nothing limits it.",
    )


class StreamEnd(Sent):
    type: Literal["stream_end"] = "stream_end"
    request_id: str
    mutations: list[Mutation] = Field(default_factory=list)
    seq: int | None = Field(default=None, json_schema_extra=SINCE_2)
    finish: Literal["stop", "cancelled", "error", "limit"] | None = Field(
        default=None, json_schema_extra=SINCE_2
    )
    code: str | None = Field(default=None, json_schema_extra=SINCE_2)
    usage: Usage | None = Field(default=None, json_schema_extra=SINCE_2)
    device_id: str | None = Field(
        default=None,
        description="the device whose data was read or changed; none if no call was sent to one",
        json_schema_extra=SINCE_2,
    )
    notices: list[Notice] | None = Field(
        default=None,
        description="what the server says of the answer, mostly in a sentence below it as well",
        json_schema_extra=SINCE_2,
    )
    retry_at: int | None = Field(
        default=None,
        description="with `budget_spent`: when there is money for models again, in milliseconds since the epoch",
        json_schema_extra=SINCE_2,
    )


class TurnOrigin(Sent):
    type: Literal["agent_run"] = "agent_run"
    run_ids: list[str]
    agent_names: list[str]


class TurnStarted(Sent):
    """A turn that nobody's message began. Its stream follows, and can be resumed, cancelled and steered like any."""

    model_config = _SENT_2
    type: Literal["turn_started"] = "turn_started"
    request_id: str
    conversation_id: str
    kind: Literal["home", "floating"]
    origin: TurnOrigin


class RunEnded(Sent):
    """The end of a run that was started from a chat, or that its agent tells of; a conversation says so."""

    model_config = _SENT_2
    type: Literal["run_ended"] = "run_ended"
    run_id: str
    agent_id: str
    agent_name: str
    state: str
    verdict: str
    records_created: int
    problems: int
    conversation_id: str | None = None


class ConversationChanged(Sent):
    """A conversation has a new message, and this device has not received its stream. `seq`: the message's place."""

    model_config = _SENT_2
    type: Literal["conversation_changed"] = "conversation_changed"
    conversation_id: str
    seq: int


ServerFrame = Annotated[
    HelloAck
    | Ping
    | Error
    | ToolCall
    | ToolBatch
    | AgentRun
    | AgentFetch
    | AgentAck
    | AgentProgress
    | AgentCancel
    | FloatingDomain
    | StreamStart
    | StreamText
    | StreamStatus
    | ApprovalRequest
    | StreamEnd
    | TurnStarted
    | RunEnded
    | ConversationChanged,
    Field(discriminator="type"),
]
