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

/** `errors` names what the device could not read: a sentence, or `{path, reason}`. `passed_over`: files of kinds that cannot be read and were not asked for by name, as suffix → number. */
export interface AgentComplete {
  type: "agent_complete";
  run_id: string;
  files_read?: number;
  errors?: (string | Record<string, unknown>)[];
  /** (protocol 2) */
  batches?: number | null;
  /** (protocol 2) */
  passed_over?: Record<string, unknown> | null;
}

export interface AgentData {
  type: "agent_data";
  run_id: string;
  files: AgentFile[];
  /** (protocol 2) */
  batch?: number | null;
}

/** The answer to one `agent_manifest`: what of it is to be sent. An empty list asks for nothing. (protocol 2) */
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
  passed_over?: Record<string, unknown> | null;
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
}

/** (protocol 2) */
export interface Error {
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
}

export interface ManifestFile {
  path: string;
  sha256: string;
  size: number;
  mtime: number;
}

export interface Mutation {
  action: "insert" | "update" | "delete";
  table: "tasks" | "projects" | "timelines" | "notes" | "taskComments" | "clients";
  /** the row as the device returned it */
  data: Record<string, unknown>;
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

export interface Scope {
  type: "task" | "project" | "note" | "timeline" | "workspace";
  id?: string | null;
}

export type ServerFrame = HelloAck | Ping | Error | ToolCall | ToolBatch | AgentRun | AgentFetch | AgentAck | AgentProgress | AgentCancel | FloatingDomain | StreamStart | StreamText | StreamStatus | ApprovalRequest | StreamEnd;

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
  action: "select" | "get" | "insert" | "update" | "delete" | "vector_upsert" | "vector_search";
  table?: "tasks" | "projects" | "timelines" | "notes" | "taskComments" | "clients" | null;
  data?: Record<string, unknown> | null;
  filters?: Record<string, unknown> | null;
  vector?: number[] | null;
  limit?: number | null;
  /** rows of a select to pass over; only for devices with the capability `offset` (protocol 2) */
  offset?: number | null;
  /** (protocol 2) */
  attempt?: number | null;
  /** milliseconds the server waits for the answer (protocol 2) */
  deadline_ms?: number | null;
  type: "tool_call";
}

export interface ToolCallBody {
  id: string;
  action: "select" | "get" | "insert" | "update" | "delete" | "vector_upsert" | "vector_search";
  table?: "tasks" | "projects" | "timelines" | "notes" | "taskComments" | "clients" | null;
  data?: Record<string, unknown> | null;
  filters?: Record<string, unknown> | null;
  vector?: number[] | null;
  limit?: number | null;
  /** rows of a select to pass over; only for devices with the capability `offset` (protocol 2) */
  offset?: number | null;
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
  /** with an error: too_large if the result does not fit into a frame; the server then asks for less (protocol 2) */
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
  /** with an error: too_large if the result does not fit into a frame; the server then asks for less (protocol 2) */
  code?: string | null;
}

export interface Usage {
  input_tokens?: number;
  output_tokens?: number;
  model_calls?: number;
}
