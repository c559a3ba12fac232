/** The device socket: hello, pings, tool calls, chats, and a connection that is made again when it is lost. */

import { Account, Refused } from "./account.js";
import { Chat, FrameRefused } from "./chat.js";
import { CLOSE_CODES, PROTOCOL } from "./protocol.js";
import type { Capability, ClientFrame, DeviceHello, ErrorFrame, HelloAck, Scope, ServerFrame, StreamEnd } from "./protocol.js";
import { Upload } from "./runs.js";
import type { Files } from "./runs.js";
import { answer } from "./store.js";
import type { Store } from "./store.js";

/** What is used of a WebSocket: that of browsers, of Node 22, or of the package `ws`. */
export interface Socket {
  send(text: string): void;
  close(code?: number): void;
  addEventListener(type: string, listener: (event: any) => void): void;
}

export interface ClientOptions {
  /** Made once and kept with the rows: it is the device. */
  deviceId: string;
  store: Store;
  files?: Files;
  name?: string;
  /** Folders that agents may read, to show to the user. */
  grants?: string[];
  /** Hears of turns that were not asked for here: a message that was added to a turn just after its end, the end of a run. */
  onTurn?: (chat: Chat) => void;
  WebSocket?: new (url: string) => Socket;
  /** Milliseconds to wait; for tests. */
  sleep?: (ms: number) => Promise<void>;
}

export interface AskOptions {
  conversationId?: string;
  /** What is open: the small window beside a task, project, note or date. */
  scope?: Scope;
  /** Without it, a new one. The same again joins the running turn. */
  requestId?: string;
  /** Whose rows it is about, if not those of this device. */
  aboutDevice?: string;
  /** false: nothing of it is remembered, and nothing is recalled for it. */
  memory?: boolean;
  /** While the conversation has a turn already: wait for its end (the default), join it, or be refused. */
  busy?: "enqueue" | "steer" | "reject";
}

/** Close codes after which no further attempt helps. */
const FINAL = new Set<number>([CLOSE_CODES.SUPERSEDED, CLOSE_CODES.ORIGIN_REFUSED]);
const STABLE_MS = 60_000;

export class Closed extends Error {
  constructor(readonly code: number) {
    super(`the connection ended for good (${code})`);
  }
}

export class Client {
  private socket: Socket | undefined;
  private readonly chats = new Map<string, Chat>();
  private readonly uploads = new Map<string, Upload>();
  private readonly listeners = new Set<(frame: ServerFrame) => void>();
  private calls: Promise<unknown> = Promise.resolve();
  private failures = 0;
  private stopping = false;
  private wakeUp: () => void = () => undefined;
  /** Whether the server said hello on this connection. */
  private ready = false;
  /** What waits for the next connection. */
  private readonly unsent: ClientFrame[] = [];
  /** What was answered to approvals, for a question that comes again because the answer was lost. */
  private readonly decided = new Map<string, boolean>();
  private inflight = 1;
  /** Rejects when the connection is over for good; resolves after `close()`. */
  done: Promise<void> = Promise.resolve();

  constructor(
    readonly account: Account,
    private readonly options: ClientOptions,
  ) {}

  /** Connect, and stay connected. Resolves with the first acknowledgement. @throws Refused, Closed */
  connect(): Promise<HelloAck> {
    return new Promise((resolve, reject) => {
      this.done = this.stayConnected(resolve).finally(() => this.endChats());
      this.done.then(() => reject(new Closed(1000)), reject);
    });
  }

  close(): void {
    this.stopping = true;
    this.wakeUp();
    this.socket?.close(1000);
  }

  /** Hear every frame, such as `agent_progress` and `error`. Returns what ends it. */
  listen(listener: (frame: ServerFrame) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Ask the assistant. Iterate over the answer's frames, or await its `end`. */
  ask(message: string, options: AskOptions = {}): Chat {
    const { conversationId, scope, requestId = crypto.randomUUID(), aboutDevice, memory, busy } = options;
    const shared = {
      message,
      request_id: requestId,
      ...(conversationId ? { conversation_id: conversationId } : {}),
      ...(aboutDevice ? { device_id: aboutDevice } : {}),
      ...(memory === undefined ? {} : { memory }),
      ...(busy ? { busy } : {}),
    };
    const request: ClientFrame = scope
      ? { type: "floating_request", scope, ...shared }
      : { type: "home_request", ...shared };
    const chat = new Chat(request, (frame) => this.sendOrKeep(frame));
    this.chats.set(requestId, chat);
    if (this.ready) this.send(request); // otherwise it follows the hello
    return chat;
  }

  /** Answer an `approval_request`, by its id. */
  approve(id: string, approved: boolean): void {
    this.decided.set(id, approved);
    this.sendOrKeep({ type: "approval_response", id, approved });
  }

  /** Without a connection, a frame waits for the next one. */
  private sendOrKeep(frame: ClientFrame): void {
    if (this.ready) this.send(frame);
    else this.unsent.push(frame);
  }

  private endChats(): void {
    for (const chat of this.chats.values()) chat.fail(new Closed(1000));
    this.chats.clear();
  }

  private send(frame: ClientFrame): void {
    this.socket?.send(JSON.stringify(frame));
  }

  private async stayConnected(first: (ack: HelloAck) => void): Promise<void> {
    const sleep = this.options.sleep ?? ((ms: number) => this.pause(ms));
    while (!this.stopping) {
      const began = Date.now();
      let code = 0;
      try {
        code = await this.once(await this.account.socketUrl(), first);
        if (code === CLOSE_CODES.NOT_AUTHENTICATED) await this.account.refresh();
      } catch (error) {
        // A refusal is final, except one that asks to try later; all else is a server that cannot be reached.
        if (error instanceof Refused && error.status < 500 && error.status !== 429) throw error;
      }
      if (this.stopping) return;
      if (FINAL.has(code)) throw new Closed(code);
      if (Date.now() - began > STABLE_MS) this.failures = 0;
      await sleep(this.delay(code));
    }
  }

  /** Wait, or until the client is closed. */
  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wakeUp = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Milliseconds before the next attempt: random, so that clients do not come back in step. */
  private delay(code: number): number {
    if (code === CLOSE_CODES.RESTARTING) return Math.random() * 2_000;
    if (code === CLOSE_CODES.TOO_MANY) return 60_000 * (1 + Math.random());
    return Math.random() * Math.min(30_000, 1_000 * 2 ** this.failures++);
  }

  /** One connection, from its hello to its close code. */
  private once(url: string, first: (ack: HelloAck) => void): Promise<number> {
    const Made = this.options.WebSocket ?? (globalThis.WebSocket as unknown as new (url: string) => Socket);
    const socket = new Made(url);
    let silence: ReturnType<typeof setTimeout> | undefined;
    let patience = 15_000;
    const heard = (over: () => void) => {
      clearTimeout(silence);
      silence = setTimeout(over, patience);
    };
    return new Promise((resolve) => {
      const over = (code: number) => {
        clearTimeout(silence);
        if (this.socket === socket) [this.socket, this.ready] = [undefined, false];
        for (const upload of this.uploads.values()) upload.cancel();
        this.uploads.clear();
        resolve(code);
      };
      const lost = () => {
        socket.close();
        over(0);
      };
      heard(lost);
      socket.addEventListener("open", () => {
        this.socket = socket;
        this.send(this.hello());
      });
      socket.addEventListener("message", (event: { data: unknown }) => {
        heard(lost);
        const frame = JSON.parse(String(event.data)) as ServerFrame;
        if (frame.type === "hello_ack") {
          patience = frame.ping_s * 2_500;
          this.inflight = Math.max(1, frame.max_inflight);
          this.ready = true;
          for (const chat of this.chats.values()) if (!chat.seen) this.send(chat.request);
          for (const kept of this.unsent.splice(0)) this.send(kept);
          first(frame);
        }
        this.take(frame);
      });
      socket.addEventListener("error", () => undefined); // a close follows
      socket.addEventListener("close", (event: { code: number }) => over(event.code));
    });
  }

  private hello(): DeviceHello {
    const { deviceId, name, grants } = this.options;
    const capabilities: Capability[] = ["dedupe", "batch", "manifest", "approval", "offset", "origin"];
    if (this.options.onTurn) capabilities.push("followups");
    const streams = [...this.chats.values()].filter((chat) => chat.seen).map((chat) => chat.position);
    return {
      type: "device_hello",
      device_id: deviceId,
      protocol: PROTOCOL,
      capabilities,
      ...(name ? { name } : {}),
      ...(grants ? { grants } : {}),
      ...(streams.length ? { streams } : {}),
    };
  }

  private take(frame: ServerFrame): void {
    if (frame.type === "approval_request" && this.decided.has(frame.id)) {
      return this.send({ type: "approval_response", id: frame.id, approved: this.decided.get(frame.id)! });
    }
    for (const listener of this.listeners) listener(frame);
    switch (frame.type) {
      case "ping":
        return this.send({ type: "pong" });
      case "tool_call":
        return this.inOrder(async () => this.send({ type: "tool_result", ...(await answer(this.options.store, frame)) }));
      case "tool_batch":
        return this.inOrder(async () => {
          const results = [];
          for (const call of frame.calls) results.push(await answer(this.options.store, call));
          // One frame each where together they might be longer than a frame.
          const groups = JSON.stringify(results).length < 250_000 ? [results] : results.map((result) => [result]);
          for (const group of groups) this.send({ type: "tool_batch_result", results: group });
        });
      case "agent_run": {
        this.uploads.get(frame.run_id)?.cancel();
        const upload = new Upload(frame, this.options.files, (sent) => this.send(sent), this.inflight);
        this.uploads.set(frame.run_id, upload);
        void upload.start().catch((error: unknown) => {
          this.send({ type: "agent_complete", run_id: frame.run_id, errors: [`the device failed: ${String(error)}`] });
        });
        return;
      }
      case "agent_fetch":
        return this.uploads.get(frame.run_id)?.fetch(frame.paths);
      case "agent_ack":
        return this.uploads.get(frame.run_id)?.acknowledge(frame.batch);
      case "agent_cancel":
        return this.uploads.get(frame.run_id)?.cancel();
      case "error":
        return this.refused(frame);
      case "turn_started":
        return; // its stream_start follows, and begins a chat like that of any other request
    }
    if ("request_id" in frame) {
      if (this.options.onTurn && frame.type === "stream_start" && !this.chats.has(frame.request_id)) {
        const { request_id } = frame;
        const chat = new Chat({ type: "home_request", message: "", request_id }, (sent) => this.sendOrKeep(sent));
        this.chats.set(request_id, chat);
        this.options.onTurn(chat);
      }
      this.chats.get(frame.request_id)?.take(frame);
      if (frame.type === "stream_end") this.chats.delete(frame.request_id);
    }
  }

  private refused({ code, message, ref }: ErrorFrame): void {
    if (code === "run_not_active") this.uploads.get(ref ?? "")?.cancel();
    const chat = this.chats.get(ref ?? "");
    // Of a turn under way, such as a steer that is too long: it goes on. One that the server does not know does not.
    if (!chat || (chat.seen && code !== "not_running")) return;
    this.chats.delete(chat.requestId);
    chat.fail(new FrameRefused(code, message));
  }

  /** Calls are applied in the order they came. */
  private inOrder(work: () => Promise<void>): void {
    this.calls = this.calls.then(work, work);
  }
}

export type { StreamEnd };
