// Made by `manage.py protocol` from adiuva/devices/protocol.py; do not edit.

/** (protocol 2) */
export interface AgentAck {
  type: "agent_ack";
  run_id: string;
  batch: number;
}

/** (protocol 2) */
export interface AgentCancel {
  type: "agent_cancel";
  run_id: string;
}

/** `errors` names the files that the device could not read: a sentence, or `{path, reason}`. `passed_over`: files of kinds that cannot be read and were not asked for by name, as suffix → number. */
export interface AgentComplete {
  type: "agent_complete";
  run_id: string;
  files_read?: number;
  errors?: (string | Record<string, unknown>)[];
  /** (protocol 2) */
  batches?: number | null;
  /** (protocol 2) */
  passed_over?: Record<string, number> | null;
}

export interface AgentData {
  type: "agent_data";
  run_id: string;
  files: AgentFile[];
  /** (protocol 2) */
  batch?: number | null;
}

/** The answer to one `agent_manifest`: the files that are to be sent. An empty list asks for nothing. (protocol 2) */
export interface AgentFetch {
  type: "agent_fetch";
  run_id: string;
  paths: string[];
}

export interface AgentFile {
  path: string;
  name: string;
  content: string;
  metadata?: Record<string, unknown>;
  /** (protocol 2) */
  part?: number | null;
  /** (protocol 2) */
  parts?: number | null;
  /** (protocol 2) */
  sha256?: string | null;
}

/** May come in several frames; the final one says `last`. Each is answered with one `agent_fetch`. (protocol 2) */
export interface AgentManifest {
  type: "agent_manifest";
  run_id: string;
  files: ManifestFile[];
  last?: boolean;
}

/** (protocol 2) */
export interface AgentProgress {
  type: "agent_progress";
  run_id: string;
  agent_id: string;
  state: string;
  files_seen: number;
  files_done: number;
  records_created: number;
  eta_s?: number | null;
  passed_over?: Record<string, number> | null;
}

export interface AgentRun {
  type: "agent_run";
  run_id: string;
  agent_id: string;
  config: AgentRunConfig;
}

export interface AgentRunConfig {
  paths: string[];
  file_extensions: string[];
  prompt_template: string;
  data_types: string[];
}

/** (protocol 2) */
export interface ApprovalRequest {
  type: "approval_request";
  id: string;
  request_id: string;
  action: string;
  table: string;
  summary: string;
  /** milliseconds since the epoch */
  expires_at: number;
}

/** (protocol 2) */
export interface ApprovalResponse {
  type: "approval_response";
  id: string;
  approved: boolean;
}

export type ClientFrame = DeviceHello | Pong | ToolResult | ToolBatchResult | AgentManifest | AgentData | AgentComplete | HomeRequest | FloatingRequest | RequestCancel | RequestSteer | StreamResume | ApprovalResponse;

/** A conversation has a new message, and this device has not received its stream. `seq`: the message's place. (protocol 2) */
export interface ConversationChanged {
  type: "conversation_changed";
  conversation_id: string;
  seq: number;
}

export interface DeviceHello {
  type: "device_hello";
  device_id: string;
  agent_ids?: string[];
  /** (protocol 2) */
  protocol?: number;
  /** (protocol 2) */
  name?: string | null;
  /** (protocol 2) */
  platform?: string | null;
  /** (protocol 2) */
  app_version?: string | null;
  /** (protocol 2) */
  capabilities?: string[];
  /** folders that agents may read on this device, as absolute paths; shown to its owner (protocol 2) */
  grants?: string[] | null;
  /** (protocol 2) */
  streams?: StreamPosition[] | null;
  /** the device's IANA zone, named to the user where the account has none of its own; one that is not known is answered with an error frame (unknown_timezone), and the connection stays (protocol 2) */
  timezone?: string | null;
}

/** (protocol 2) */
export interface ErrorFrame {
  type: "error";
  code: string;
  message: string;
  ref?: string | null;
}

export interface FloatingDomain {
  type: "floating_domain";
  request_id: string;
  domain: "tasks" | "timelines" | "notes" | "projects";
}

export interface FloatingRequest {
  type: "floating_request";
  message: string;
  scope: Scope;
  request_id?: string | null;
  /** (protocol 2) */
  conversation_id?: string | null;
  /** whose data it is about, by its device_id; without it, the device that sends this (protocol 2) */
  device_id?: string | null;
  /** false: nothing of this request is remembered, and nothing is recalled for it (protocol 2) */
  memory?: boolean;
  /** while another request of this conversation is answered: wait for its end (the default), join it at its next model call (stream_end with stop and the code joined, once the model has read it; if it ends before, this one is answered next), or be refused (error, conversation_busy) (protocol 2) */
  busy?: "enqueue" | "steer" | "reject" | null;
}

/** (protocol 2) */
export interface HelloAck {
  type: "hello_ack";
  session_id: string;
  protocol: number;
  ping_s: number;
  max_frame_bytes: number;
  max_inflight: number;
  /** milliseconds since the epoch */
  server_time: number;
}

export interface HistoryMessage {
  role: "user" | "assistant";
  content: string;
}

export interface HomeRequest {
  type: "home_request";
  message: string;
  conversation_history?: HistoryMessage[] | null;
  request_id?: string | null;
  /** (protocol 2) */
  conversation_id?: string | null;
  /** whose data it is about, by its device_id; without it, the device that sends this (protocol 2) */
  device_id?: string | null;
  /** false: nothing of this request is remembered, and nothing is recalled for it (protocol 2) */
  memory?: boolean;
  /** while another request of this conversation is answered: wait for its end (the default), join it at its next model call (stream_end with stop and the code joined, once the model has read it; if it ends before, this one is answered next), or be refused (error, conversation_busy) (protocol 2) */
  busy?: "enqueue" | "steer" | "reject" | null;
}

export interface ManifestFile {
  path: string;
  sha256: string;
  size: number;
  mtime: number;
}

export interface Mutation {
  action: "insert" | "update" | "delete";
  table: TableName;
  /** the row as the device returned it; of a deleted one its title as well, if it was read */
  data: Record<string, unknown>;
}

/** Origin of a record that an agent found. (protocol 2) */
export interface Origin {
  run_id: string;
  /** the file or mail it was found in, as the run's journal names it */
  source: string;
}

export interface Ping {
  type: "ping";
}

export interface Pong {
  type: "pong";
}

/** (protocol 2) */
export interface RequestCancel {
  type: "request_cancel";
  request_id: string;
}

/** (protocol 2) */
export interface RequestSteer {
  type: "request_steer";
  request_id: string;
  message: string;
}

/** The end of a run that was started from a chat, or that its agent tells of; a conversation says so. (protocol 2) */
export interface RunEnded {
  type: "run_ended";
  run_id: string;
  agent_id: string;
  agent_name: string;
  state: string;
  verdict: string;
  records_created: number;
  problems: number;
  conversation_id?: string | null;
}

export interface Scope {
  type: "task" | "project" | "note" | "timeline" | "workspace";
  id?: string | null;
}

export type ServerFrame = HelloAck | Ping | ErrorFrame | ToolCall | ToolBatch | AgentRun | AgentFetch | AgentAck | AgentProgress | AgentCancel | FloatingDomain | StreamStart | StreamText | StreamStatus | ApprovalRequest | StreamEnd | TurnStarted | RunEnded | ConversationChanged;

export interface StreamEnd {
  type: "stream_end";
  request_id: string;
  mutations?: Mutation[];
  /** (protocol 2) */
  seq?: number | null;
  /** (protocol 2) */
  finish?: "stop" | "cancelled" | "error" | "limit" | null;
  /** (protocol 2) */
  code?: string | null;
  /** (protocol 2) */
  usage?: Usage | null;
  /** the device whose data was read or changed; none if no call was sent to one (protocol 2) */
  device_id?: string | null;
  /** what the server says of the answer, mostly in a sentence below it as well (protocol 2) */
  notices?: ("nothing_changed" | "left_out" | "no_tools" | "other_model" | "budget_low")[] | null;
  /** with `budget_spent`: when there is money for models again, in milliseconds since the epoch (protocol 2) */
  retry_at?: number | null;
}

export interface StreamPosition {
  request_id: string;
  /** the last seq that was seen; seq begins at 0, so -1 is nothing yet */
  after: number;
}

/** (protocol 2) */
export interface StreamResume {
  type: "stream_resume";
  request_id: string;
  /** the last seq that was seen; seq begins at 0, so -1 is nothing yet */
  after: number;
}

export interface StreamStart {
  type: "stream_start";
  request_id: string;
  /** (protocol 2) */
  conversation_id?: string | null;
}

/** (protocol 2) */
export interface StreamStatus {
  type: "stream_status";
  request_id: string;
  seq: number;
  label: string;
}

export interface StreamText {
  type: "stream_text";
  request_id: string;
  chunk: string;
  /** (protocol 2) */
  seq?: number | null;
}

/** (protocol 2) */
export interface ToolBatch {
  type: "tool_batch";
  calls: ToolCallBody[];
}

/** (protocol 2) */
export interface ToolBatchResult {
  type: "tool_batch_result";
  results: ToolResultBody[];
}

export interface ToolCall {
  id: string;
  action: Action;
  table?: TableName | null;
  data?: Record<string, unknown> | null;
  filters?: Record<string, unknown> | null;
  vector?: number[] | null;
  limit?: number | null;
  /** rows of a select to pass over; only for devices with the capability `offset` (protocol 2) */
  offset?: number | null;
  /** of an insert, if an agent found the record; only for devices with the capability `origin` (protocol 2) */
  origin?: Origin | null;
  /** (protocol 2) */
  attempt?: number | null;
  /** milliseconds the server waits for the answer (protocol 2) */
  deadline_ms?: number | null;
  type: "tool_call";
}

export interface ToolCallBody {
  id: string;
  action: Action;
  table?: TableName | null;
  data?: Record<string, unknown> | null;
  filters?: Record<string, unknown> | null;
  vector?: number[] | null;
  limit?: number | null;
  /** rows of a select to pass over; only for devices with the capability `offset` (protocol 2) */
  offset?: number | null;
  /** of an insert, if an agent found the record; only for devices with the capability `origin` (protocol 2) */
  origin?: Origin | null;
  /** (protocol 2) */
  attempt?: number | null;
  /** milliseconds the server waits for the answer (protocol 2) */
  deadline_ms?: number | null;
}

export interface ToolResult {
  id: string;
  row?: Record<string, unknown> | null;
  rows?: Record<string, unknown>[] | null;
  results?: Record<string, unknown>[] | null;
  deleted?: boolean | null;
  ok?: boolean | null;
  error?: string | null;
  /** with an error: too_large if the result does not fit into a frame; the server then asks for less. not_saved if nothing could be stored, such as on a full disk; the server may then send the call again later (protocol 2) */
  code?: string | null;
  type: "tool_result";
}

export interface ToolResultBody {
  id: string;
  row?: Record<string, unknown> | null;
  rows?: Record<string, unknown>[] | null;
  results?: Record<string, unknown>[] | null;
  deleted?: boolean | null;
  ok?: boolean | null;
  error?: string | null;
  /** with an error: too_large if the result does not fit into a frame; the server then asks for less. not_saved if nothing could be stored, such as on a full disk; the server may then send the call again later (protocol 2) */
  code?: string | null;
}

export interface TurnOrigin {
  type: "agent_run";
  run_ids: string[];
  agent_names: string[];
}

/** A turn that nobody's message began. Its stream follows, and can be resumed, cancelled and steered like any. (protocol 2) */
export interface TurnStarted {
  type: "turn_started";
  request_id: string;
  conversation_id: string;
  kind: "home" | "floating";
  origin: TurnOrigin;
}

export interface Usage {
  input_tokens?: number;
  output_tokens?: number;
  model_calls?: number;
  /** The part of the input that the provider had in its cache; absent if it does not say. */
  cached_tokens?: number | null;
  /** The model that gave the answer, as the server's settings name it. */
  model?: string | null;
  /** The cost, in millionths of the server's currency; absent if the model has no price. */
  cost_micro?: number | null;
  /** The percentage left of the month's allowance for models; absent if nothing limits it. */
  percent_left?: number | null;
}

/** A row of tasks: something that somebody is to do. */
export interface TaskRow {
  /** made by the device */
  id: string;
  /** the id of a project, or absent */
  projectId: string | null;
  /** what is to be done, in a few words */
  title: string;
  /** what one must know to do it */
  description: string | null;
  status: "todo" | "in_progress" | "done";
  priority: "high" | "medium" | "low";
  /** the names of those who are to do it; a JSON array of strings, as a string */
  assignee: string | null;
  /** when it is due; milliseconds since the epoch */
  dueDate: number | null;
  isAiSuggested: 0 | 1;
  isApproved: 0 | 1;
  /** milliseconds since the epoch; made by the device */
  createdAt: number;
}

/** A row of projects: a body of work for a client. */
export interface ProjectRow {
  /** made by the device */
  id: string;
  clientId: string | null;
  name: string;
  status: "active" | "archived";
  /** what the project is, in a sentence or two */
  aiSummary: string | null;
  /** milliseconds since the epoch; made by the device */
  createdAt: number;
}

/** A row of timelines: a date that matters to a project: a milestone, a deadline, an event. */
export interface TimelineRow {
  /** made by the device */
  id: string;
  /** the id of the project it belongs to */
  projectId: string;
  title: string;
  /** when it is; milliseconds since the epoch */
  date: number;
  isAiSuggested: 0 | 1;
  isApproved: 0 | 1;
  /** milliseconds since the epoch; made by the device */
  createdAt: number;
}

/** A row of notes: something worth keeping, in Markdown. */
export interface NoteRow {
  /** made by the device */
  id: string;
  projectId: string | null;
  title: string;
  /** Markdown */
  content: string;
  /** milliseconds since the epoch; made by the device */
  createdAt: number;
  /** milliseconds since the epoch; made by the device */
  updatedAt: number;
}

/** A row of taskComments: a remark on a task. */
export interface TaskCommentRow {
  /** made by the device */
  id: string;
  /** the id of the task it is about */
  taskId: string;
  author: string | null;
  content: string;
  /** milliseconds since the epoch; made by the device */
  createdAt: number;
}

/** A row of clients: a person or company that work is done for. */
export interface ClientRow {
  /** made by the device */
  id: string;
  parentId: string | null;
  name: string;
  industry: string | null;
  /** milliseconds since the epoch; made by the device */
  createdAt: number;
}

export interface Rows {
  tasks: TaskRow;
  projects: ProjectRow;
  timelines: TimelineRow;
  notes: NoteRow;
  taskComments: TaskCommentRow;
  clients: ClientRow;
}

/** The filters of a `select`; one that is null counts as absent. */
export interface Filters {
  /** rows whose column is this; likewise the next three */
  projectId?: string | null;
  status?: string | null;
  taskId?: string | null;
  clientId?: string | null;
  /** rows in whose texts each of these words occurs, in upper or lower case */
  search?: string | null;
  /** milliseconds: rows that are due at this time or later (`dueDate`; `date` of timelines) */
  dueDateFrom?: number | null;
  /** milliseconds: rows that are due at this time or earlier */
  dueDateTo?: number | null;
  /** projects: the archived ones too, which are left out unless `status` or this is given */
  includeArchived?: boolean | null;
  /** a column, `column desc` or `-column`; rows without a value come last. Without it the oldest come first */
  orderBy?: string | null;
}

export type Action = "select" | "get" | "insert" | "update" | "delete" | "vector_upsert" | "vector_search";
export type TableName = "tasks" | "projects" | "timelines" | "notes" | "taskComments" | "clients";
export type Capability = "dedupe" | "batch" | "manifest" | "approval" | "offset" | "origin" | "followups";
export type CloseCode = 4401 | 4403 | 4408 | 4409 | 4413 | 4429 | 1012;
/** Codes of `error` frames. Newer servers may say others. */
export type FrameCode = "bad_json" | "bad_frame" | "unknown_type" | "frame_too_large" | "too_deep" | "number_too_large" | "hello_first" | "hello_twice" | "unknown_timezone" | "run_not_active" | "not_running" | "throttled" | "approval_over" | "unavailable" | "internal_error";
/** Codes of `stream_end`. Newer servers may say others. */
export type StreamCode = "device_offline" | "device_unreachable" | "unknown_device" | "conversation_not_found" | "request_taken" | "request_id_reused" | "turn_is_running" | "conversation_busy" | "joined" | "stream_expired" | "turn_lost" | "server_restarting" | "too_many_requests" | "throttled" | "too_many_model_calls" | "deadline" | "answer_too_long" | "answer_cut_off" | "answer_repeats" | "same_call_fails" | "content_filter" | "user_gone" | "not_saved" | "outcome_unknown" | "internal_error" | "unavailable" | "model_unavailable" | "model_timeout" | "model_rate_limited" | "model_not_configured" | "budget_spent" | "work_budget_spent" | "model_price_missing" | "model_rejected" | "model_context_exceeded" | "model_interrupted" | "model_bad_output" | "model_empty" | "model_garbled" | "model_error";
export const LIMITS = {
  MAX_FRAME_BYTES: 1048576,
  MAX_DEPTH: 32,
  MAX_BATCH: 64,
  PART_BYTES: 524288,
  KEEP_RESULTS_DAYS: 30,
  KEEP_STREAM_MINUTES: 10,
} as const;
export const CLOSE_CODES = {
  NOT_AUTHENTICATED: 4401,
  ORIGIN_REFUSED: 4403,
  TIMEOUT: 4408,
  SUPERSEDED: 4409,
  TOO_LARGE: 4413,
  TOO_MANY: 4429,
  RESTARTING: 1012,
} as const;
export const PROTOCOL = 2;
