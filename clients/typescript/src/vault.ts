/** What the server keeps and cannot read: backups and records that were sealed here (`sealed.ts`). */

import { Account, Refused } from "./account.js";
import { chunksOf, Damaged, joined } from "./sealed.js";
import type { Tools } from "./sealed.js";

export interface Backup {
  id: string;
  version: number;
  /** When its device made it, in milliseconds. */
  timestamp: number;
  /** The time of the backup that it builds on; null: it is whole. */
  base: number | null;
  checksum: string;
  chunk_count: number;
  size_bytes: number;
  state: "ok" | "corrupt";
}

export interface Stored {
  checksum: string;
  version: number;
}

export interface Change extends Stored {
  id: string;
  table: string;
  /** Only this says that a record is deleted, whatever a list leaves out. */
  deleted: boolean;
}

export interface UploadOptions {
  /** An upload that was begun with the same bytes: it goes on where it is. */
  upload?: string;
  /** Hears the id of a new upload: kept with the sealed bytes, it can be gone on with after a restart, for a day. */
  begun?: (upload: string) => unknown;
  progress?: (sent: number, size: number) => unknown;
}

export interface VaultOptions {
  /** Milliseconds to wait before another try; for tests. */
  sleep?: (ms: number) => Promise<void>;
  /** Bytes of one request; each is checked by the server before it counts. */
  pieceBytes?: number;
}

const TUS = { "Tus-Resumable": "1.0.0" };
const INLINE = 1024 * 1024; // a larger record is uploaded first
const PAGE = 100;
const TRIES = 6; // in a row, without a byte that counts
const AGAIN = new Set([408, 423, 429, 460, 500, 502, 503, 504]);

export class Vault {
  constructor(
    private readonly account: Account,
    private readonly tools: Tools,
    private readonly options: VaultOptions = {},
  ) {}

  // ── Backups ────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * Store a sealed file (`seal`) as a backup. The same again is no second one. In Node, `fs.openAsBlob` makes a Blob of a
   * file without reading it. @throws Refused
   */
  async backUp(sealed: Blob, timestamp: number, options: UploadOptions & { version?: number } = {}): Promise<void> {
    const checksum = await this.checksumOf(sealed);
    const upload = await this.upload(sealed, "backup", options);
    const headers = {
      "X-Upload-Id": upload,
      "X-Backup-Version": String(options.version ?? 1),
      "X-Backup-Timestamp": String(timestamp),
      "X-Backup-Checksum": checksum,
      "X-Backup-Chunks": String(chunksOf(sealed.size)),
    };
    await this.patiently(() => this.account.request("PUT", "backup", { headers }));
  }

  /** The backups, the newest first: those of the first page. */
  backups(): Promise<Backup[]> {
    return this.account.rest("GET", "backup/history");
  }

  /** All backups, the newest first. */
  async *allBackups(): AsyncGenerator<Backup> {
    for (let page = 1; ; page++) {
      const found = await this.patiently(() => this.account.rest<Backup[]>("GET", `backup/history?limit=${PAGE}&page=${page}`));
      yield* found;
      if (found.length < PAGE) return;
    }
  }

  /** One that others build on is deleted after them. */
  async deleteBackup(id: string): Promise<void> {
    await this.account.rest("DELETE", `backup/${id}`);
  }

  /**
   * The bytes of a backup, the newest without an id, for `open`; of one that builds on another, `restored` makes it
   * whole. A line that breaks is taken up again where it was.
   * @throws Refused; Damaged at the end if they are not what was stored
   */
  backup(id?: string): AsyncGenerator<Uint8Array> {
    return this.download(id ? `backup/${id}` : "backup");
  }

  // ── Records ────────────────────────────────────────────────────────────────────────────────────────────

  /** Store a sealed record. With an id of your own, the same again is no second one. @throws Refused */
  async create(table: string, sealed: Uint8Array, id: string = crypto.randomUUID()): Promise<string> {
    await this.patiently(async () => this.account.rest("POST", "storage/records", { id, table, ...(await this.content(sealed)) }));
    return id;
  }

  /** @throws Refused; Damaged */
  async read(id: string): Promise<{ sealed: Uint8Array; checksum: string }> {
    const pieces: Uint8Array[] = [];
    for await (const piece of this.download(`storage/records/${id}`)) pieces.push(piece);
    const sealed = joined(pieces);
    return { sealed, checksum: this.hex(sealed) };
  }

  /** Replace a record that still has this checksum. @throws Refused with `changed_meanwhile`: read it first */
  async replace(id: string, sealed: Uint8Array, ifChecksum: string): Promise<Stored> {
    const headers = { "Content-Type": "application/json", "If-Match": `"${ifChecksum}"` };
    const answer = await this.patiently(async () => {
      const body = JSON.stringify(await this.content(sealed));
      return this.account.request("PUT", `storage/records/${id}`, { headers, body });
    });
    return (await answer.json()) as Stored;
  }

  /** For 7 days it can be brought back. */
  async delete(id: string): Promise<void> {
    await this.account.rest("DELETE", `storage/records/${id}`);
  }

  async undelete(id: string): Promise<void> {
    await this.account.rest("POST", `storage/records/${id}/undelete`);
  }

  /** What has changed since a cursor, without one all; each part with the cursor to keep once it is dealt with. */
  async *changes(cursor = ""): AsyncGenerator<{ changes: Change[]; cursor: string }> {
    for (;;) {
      type Part = { changes: Change[]; cursor: string; complete: boolean };
      const path = `storage/changes?since=${encodeURIComponent(cursor)}`;
      const part = await this.patiently(() => this.account.rest<Part>("GET", path));
      yield { changes: part.changes, cursor: part.cursor };
      if (part.complete) return;
      cursor = part.cursor;
    }
  }

  private async content(sealed: Uint8Array): Promise<Record<string, string>> {
    const checksum = this.hex(sealed);
    if (sealed.length <= INLINE) return { blob: toBase64(sealed), checksum };
    const blob = new Blob([sealed as Uint8Array<ArrayBuffer>]);
    return { upload: await this.upload(blob, "storage"), checksum };
  }

  // ── Bytes ──────────────────────────────────────────────────────────────────────────────────────────────

  /** Bring bytes up, over lines that break. Returns the upload's id, to make something of. @throws Refused */
  async upload(sealed: Blob, purpose: "backup" | "storage", options: UploadOptions = {}): Promise<string> {
    const upload = options.upload ?? (await this.begin(sealed.size, purpose));
    if (!options.upload) await options.begun?.(upload);
    const path = `storage/uploads/${upload}`;
    let failures = 0;
    let offset = await this.patiently(() => this.offsetOf(path));
    while (offset < sealed.size) {
      try {
        offset = await this.send(path, offset, sealed);
        failures = 0;
        options.progress?.(offset, sealed.size);
      } catch (error) {
        // The server says how far it is; a piece whose answer was lost may have come.
        if (!isPassing(error) && !(error instanceof Refused && error.code === "offset_mismatch")) throw error;
        if (++failures >= TRIES) throw error;
        await this.pause(failures, error);
        offset = await this.patiently(() => this.offsetOf(path));
      }
    }
    return upload;
  }

  private async begin(size: number, purpose: string): Promise<string> {
    const headers = { ...TUS, "Upload-Length": String(size), "Upload-Metadata": `purpose ${btoa(purpose)}` };
    const answer = await this.patiently(() => this.account.request("POST", "storage/uploads", { headers }));
    return answer.headers.get("Location")!.split("/").at(-1)!;
  }

  private async offsetOf(path: string): Promise<number> {
    const answer = await this.account.request("HEAD", path, { headers: TUS });
    return Number(answer.headers.get("Upload-Offset"));
  }

  private async send(path: string, offset: number, sealed: Blob): Promise<number> {
    const body = sealed.slice(offset, offset + (this.options.pieceBytes ?? 8 * 1024 * 1024));
    const digest = await crypto.subtle.digest("SHA-256", await body.arrayBuffer());
    const headers = {
      ...TUS,
      "Upload-Offset": String(offset),
      "Upload-Checksum": `sha256 ${toBase64(new Uint8Array(digest))}`,
      "Content-Type": "application/offset+octet-stream",
    };
    const answer = await this.account.request("PATCH", path, { headers, body });
    return Number(answer.headers.get("Upload-Offset"));
  }

  private async *download(path: string): AsyncGenerator<Uint8Array> {
    const digest = this.tools.sha256();
    let [at, tag, failures] = [0, "", 0];
    for (;;) {
      try {
        const headers: Record<string, string> = at ? { Range: `bytes=${at}-`, "If-Range": tag } : {};
        const answer = await this.account.request("GET", path, { headers });
        if (at && answer.status !== 206) throw new Damaged("what was read before the line broke"); // it was replaced
        tag = answer.headers.get("ETag")!;
        if (answer.body) {
          for await (const piece of pieces(answer.body)) {
            at += piece.length;
            failures = 0;
            digest.update(piece);
            yield piece;
          }
        }
        break;
      } catch (error) {
        if (!isPassing(error) || ++failures >= TRIES) throw error;
        await this.pause(failures, error);
      }
    }
    if (`"${toHex(digest.digest())}"` !== tag) throw new Damaged();
  }

  private async patiently<T>(act: () => Promise<T>): Promise<T> {
    for (let failures = 1; ; failures++) {
      try {
        return await act();
      } catch (error) {
        if (!isPassing(error) || failures >= TRIES) throw error;
        await this.pause(failures, error);
      }
    }
  }

  private async pause(failures: number, error: unknown): Promise<void> {
    const asked = error instanceof Refused ? Number(error.body["retry_after_s"] ?? 0) * 1_000 : 0;
    const sleep = this.options.sleep ?? ((ms: number) => new Promise((resolve) => setTimeout(resolve, ms)));
    await sleep(Math.max(asked, Math.random() * 1_000 * 2 ** failures));
  }

  private hex(bytes: Uint8Array): string {
    const digest = this.tools.sha256();
    digest.update(bytes);
    return toHex(digest.digest());
  }

  private async checksumOf(blob: Blob): Promise<string> {
    const digest = this.tools.sha256();
    for await (const piece of pieces(blob.stream())) digest.update(piece);
    return toHex(digest.digest());
  }
}

/** What may be otherwise when it is tried again: a line that broke, or a server that says so. */
function isPassing(error: unknown): boolean {
  return error instanceof Refused ? AGAIN.has(error.status) : error instanceof TypeError;
}

/** A stream's pieces, in browsers too that cannot iterate over it. */
export async function* pieces(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined); // it may have broken
  }
}

function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 32_768) text += String.fromCharCode(...bytes.subarray(at, at + 32_768));
  return btoa(text);
}
