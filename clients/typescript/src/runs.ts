/** An agent's run over the folders that this device grants: manifest, fetch, data, acknowledgements, complete. */

import { LIMITS } from "./protocol.js";
import type { AgentFile, AgentRun, ClientFrame, ManifestFile } from "./protocol.js";

export interface Files {
  /** The files of these kinds below these folders, as far as the user granted them. `sha256` is of the file's bytes. */
  list(paths: string[], extensions: string[]): AsyncIterable<ManifestFile> | Iterable<ManifestFile>;
  /** The text of one of them. What it throws is reported as that file's problem. */
  read(path: string): Promise<{ text: string; metadata?: Record<string, unknown> }>;
}

type Problem = { path: string; reason: string };

const FILES_A_MANIFEST = 500;
const BATCH_BYTES = 256 * 1024;

export class Upload {
  private readonly offered = new Map<string, ManifestFile>();
  private readonly sent = new Set<string>();
  private readonly open = new Set<number>();
  private readonly fetches: string[][] = [];
  private readonly problems: Problem[] = [];
  private batches = 0;
  private wake: () => void = () => undefined;
  private over = false;

  constructor(
    private readonly run: AgentRun,
    private readonly files: Files | undefined,
    private readonly send: (frame: ClientFrame) => void,
    private readonly maxInflight: number,
  ) {}

  fetch(paths: string[]): void {
    this.fetches.push(paths);
    this.wake();
  }

  acknowledge(batch: number): void {
    this.open.delete(batch);
    this.wake();
  }

  cancel(): void {
    this.over = true;
    this.wake();
  }

  async start(): Promise<void> {
    const { run_id } = this.run;
    for await (const file of this.files?.list(this.run.config.paths, this.run.config.file_extensions) ?? []) {
      this.offered.set(file.path, file);
    }
    const all = [...this.offered.values()];
    const groups = Math.max(1, Math.ceil(all.length / FILES_A_MANIFEST));
    for (let group = 0; group < groups; group++) {
      const files = all.slice(group * FILES_A_MANIFEST, (group + 1) * FILES_A_MANIFEST);
      if (this.over) return;
      this.send({ type: "agent_manifest", run_id, files, last: group === groups - 1 });
      await this.until(() => this.fetches.length > 0);
      await this.sendFiles(this.fetches.shift() ?? []);
    }
    await this.until(() => this.open.size === 0);
    if (this.over) return;
    this.send({
      type: "agent_complete",
      run_id,
      files_read: this.sent.size,
      errors: this.problems,
      batches: this.batches,
    });
  }

  private async sendFiles(paths: string[]): Promise<void> {
    let batch: AgentFile[] = [];
    let bytes = 0;
    const flush = async () => {
      if (batch.length === 0) return;
      await this.until(() => this.open.size < this.maxInflight);
      if (this.over) return;
      this.open.add(this.batches);
      this.send({ type: "agent_data", run_id: this.run.run_id, files: batch, batch: this.batches++ });
      [batch, bytes] = [[], 0];
    };
    for (const path of paths) {
      if (this.over) return;
      for (const file of await this.parts(path)) {
        const size = JSON.stringify(file).length * 2;
        if (bytes + size > BATCH_BYTES) await flush();
        batch.push(file);
        bytes += size;
      }
    }
    await flush();
  }

  private async parts(path: string): Promise<AgentFile[]> {
    const file = this.offered.get(path);
    try {
      if (!file || !this.files) throw new Error("the server asked for it, but it had not been offered");
      const { text, metadata } = await this.files.read(path);
      const name = path.split(/[\\/]/).pop() ?? path;
      const whole = { path, name, metadata: { ...metadata, size: file.size, mtime: file.mtime } };
      this.sent.add(path);
      const pieces = cut(text);
      if (pieces.length === 1) return [{ ...whole, content: text }];
      const sha256 = await hex(text);
      return pieces.map((content, at) => ({ ...whole, content, part: at + 1, parts: pieces.length, sha256 }));
    } catch (error) {
      this.problems.push({ path, reason: error instanceof Error ? error.message : String(error) });
      return [];
    }
  }

  private async until(met: () => boolean): Promise<void> {
    while (!met() && !this.over) await new Promise<void>((resolve) => (this.wake = resolve));
  }
}

/** A text in pieces whose JSON fits into a frame, cut between characters. */
function cut(text: string): string[] {
  const most = LIMITS.PART_BYTES / 4; // a code unit is at most 3 bytes of UTF-8, and an escape in JSON may be longer
  const pieces: string[] = [];
  for (let start = 0; start < text.length || pieces.length === 0; ) {
    let end = Math.min(start + most, text.length);
    if (end < text.length && /[\uD800-\uDBFF]/.test(text.charAt(end - 1))) end--;
    pieces.push(text.slice(start, end));
    start = end;
  }
  return pieces;
}

async function hex(text: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
