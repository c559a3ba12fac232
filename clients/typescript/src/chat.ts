/** The answer to one request, as an async iterator of its frames. */

import type {
  ApprovalRequest,
  ClientFrame,
  FloatingDomain,
  StreamEnd,
  StreamPosition,
  StreamStart,
  StreamStatus,
  StreamText,
} from "./protocol.js";

export type ChatFrame = FloatingDomain | StreamStart | StreamText | StreamStatus | ApprovalRequest | StreamEnd;

/** The server did not take the request; `code` is that of its `error` frame. */
export class FrameRefused extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

export class Chat implements AsyncIterable<ChatFrame> {
  /** Resolves with the last frame; the answer's text is in `text` by then. Rejects where iterating throws. */
  readonly end: Promise<StreamEnd>;
  /** All text so far. */
  text = "";
  /** Of the conversation, once it began: ask with it to go on. */
  conversationId: string | undefined;
  /** Whether the server has begun: from then on it is resumed, not asked again. */
  seen = false;
  private seq = -1;
  private ended = false;
  private failure: Error | undefined;
  private readonly frames: ChatFrame[] = [];
  private wake: () => void = () => undefined;
  private finish!: (frame: StreamEnd) => void;
  private reject!: (error: Error) => void;

  constructor(
    readonly request: ClientFrame & { request_id?: string | null },
    private readonly send: (frame: ClientFrame) => void,
  ) {
    this.end = new Promise((resolve, reject) => ([this.finish, this.reject] = [resolve, reject]));
    this.end.catch(() => undefined); // whoever iterates hears it there
  }

  get requestId(): string {
    return this.request.request_id ?? "";
  }

  get position(): StreamPosition {
    return { request_id: this.requestId, after: this.seq };
  }

  cancel(): void {
    this.send({ type: "request_cancel", request_id: this.requestId });
  }

  /** Add a message to the running turn. */
  steer(message: string): void {
    this.send({ type: "request_steer", request_id: this.requestId, message });
  }

  /** Take a frame from the server, unless it came before. */
  take(frame: ChatFrame): void {
    const seq = "seq" in frame ? frame.seq : undefined;
    if (seq !== undefined && seq !== null) {
      if (seq <= this.seq) return;
      this.seq = seq;
    } else if (frame.type !== "stream_text" && this.frames.some((had) => isRepeat(had, frame))) {
      return;
    }
    if (frame.type === "stream_start") {
      this.seen = true;
      this.conversationId = frame.conversation_id ?? undefined;
    }
    if (frame.type === "stream_text") this.text += frame.chunk;
    this.frames.push(frame);
    if (frame.type === "stream_end") {
      this.ended = true;
      this.finish(frame);
    }
    this.wake();
  }

  /** End it without a last frame: the server refused it, or the client was closed. */
  fail(error: Error): void {
    this.failure = error;
    this.reject(error);
    this.wake();
  }

  /** @throws FrameRefused if the server did not take the request, Closed if the client was closed before the end. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ChatFrame, void> {
    for (let at = 0; ; at++) {
      while (at >= this.frames.length) {
        if (this.ended) return;
        if (this.failure) throw this.failure;
        await new Promise<void>((resolve) => (this.wake = resolve));
      }
      yield this.frames[at]!;
    }
  }
}

/** Whether a frame without `seq` came before: there is one of each kind, and one approval of each id. */
function isRepeat(had: ChatFrame, frame: ChatFrame): boolean {
  return had.type === frame.type && (!("id" in had) || !("id" in frame) || had.id === frame.id);
}
