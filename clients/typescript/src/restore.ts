/**
 * A backup's data, also where it was sent as what differs from an earlier one (`manage.py device --backup` does so).
 *
 * A difference is sealed as a whole file is. Opened, it is a header, the numbers of the blocks that changed, and those
 * blocks; it names what it builds on, which the server keeps as long, by the checksum of its sealed bytes.
 */

import { Damaged, joined, open } from "./sealed.js";
import type { Tools } from "./sealed.js";
import type { Backup, Vault } from "./vault.js";

const DIFFERENCE = 2; // the version of a backup that is one
const MAGIC = new TextEncoder().encode("ADIUVAD1");
const BLOCK = 64 * 1024;
const HEADER = 8 + 8 + 32 + 8 + 32 + 4; // magic, size and SHA-256 of the result, time and SHA-256 of the base, blocks

/**
 * The data of a backup, the newest without an id. After an error what came before is worth nothing.
 * @throws WrongPassphrase; Damaged, also if what it builds on is not there; Refused
 */
export async function* restored(vault: Vault, passphrase: string, tools: Tools, id?: string): AsyncGenerator<Uint8Array> {
  const backups: Backup[] = [];
  for await (const backup of vault.allBackups()) backups.push(backup);
  const wanted = id ? backups.find((backup) => backup.id === id) : backups[0];
  if (wanted?.version !== DIFFERENCE) {
    yield* open(vault.backup(id), passphrase, tools);
    return;
  }
  const difference = read(await all(open(vault.backup(wanted.id), passphrase, tools)));
  const base = backups.find((backup) => backup.timestamp === difference.base);
  if (base?.checksum !== difference.baseChecksum) throw new Damaged("what this backup builds on");
  yield* putTogether(difference, open(vault.backup(base.id), passphrase, tools), tools);
}

interface Difference {
  size: number;
  checksum: string;
  base: number;
  baseChecksum: string;
  changed: Map<number, Uint8Array>;
}

function read(bytes: Uint8Array): Difference {
  if (bytes.length < HEADER || !MAGIC.every((byte, at) => bytes[at] === byte)) throw new Damaged();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = view.getUint32(88);
  const blocks = HEADER + 4 * count;
  if (bytes.length < blocks) throw new Damaged();
  const changed = new Map<number, Uint8Array>();
  for (let number = 0; number < count; number++) {
    const block = bytes.subarray(blocks + number * BLOCK, blocks + (number + 1) * BLOCK);
    changed.set(view.getUint32(HEADER + 4 * number), block);
  }
  return {
    size: Number(view.getBigUint64(8)),
    checksum: hex(bytes.subarray(16, 48)),
    base: Number(view.getBigUint64(48)),
    baseChecksum: hex(bytes.subarray(56, 88)),
    changed,
  };
}

async function* putTogether(difference: Difference, base: AsyncIterable<Uint8Array>, tools: Tools): AsyncGenerator<Uint8Array> {
  const digest = tools.sha256();
  const blocks = inBlocks(base);
  for (let at = 0; at < difference.size; at += BLOCK) {
    const { value } = await blocks.next(); // also where it changed, so that the next one is the next
    const block = (difference.changed.get(at / BLOCK) ?? value ?? new Uint8Array()).subarray(0, difference.size - at);
    digest.update(block);
    yield block;
  }
  await blocks.return(undefined);
  if (hex(digest.digest()) !== difference.checksum) throw new Damaged();
}

async function* inBlocks(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let held: Uint8Array = new Uint8Array();
  for await (const piece of source) {
    held = joined([held, piece]);
    let at = 0;
    for (; held.length - at >= BLOCK; at += BLOCK) yield held.subarray(at, at + BLOCK);
    held = held.slice(at);
  }
  if (held.length) yield held;
}

async function all(source: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const found: Uint8Array[] = [];
  for await (const piece of source) found.push(piece);
  return joined(found);
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
