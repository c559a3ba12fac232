/**
 * Sealing on the device, before the server gets it: files with a passphrase, and records with a key.
 *
 * A sealed file is what `manage.py device --backup` makes, so each opens the other's: the key comes from the passphrase
 * by scrypt, with a new salt; after a header come chunks of 1 MiB, each sealed by AES-256-GCM under its number and
 * whether it is the last. What was changed, cut or moved does not open.
 */

/** What WebCrypto lacks. `nodeTools(crypto)` has it in Node and Electron; a browser brings a library. */
export interface Tools {
  /** 32 bytes; r is 8 and p is 1. */
  scrypt(passphrase: Uint8Array, salt: Uint8Array, n: number): Promise<Uint8Array>;
  sha256(): { update(bytes: Uint8Array): unknown; digest(): Uint8Array };
}

/** What is used of Node's `crypto`. */
interface NodeCrypto {
  scrypt(
    password: Uint8Array,
    salt: Uint8Array,
    length: number,
    options: { N: number; r: number; p: number; maxmem: number },
    done: (error: Error | null, key: Uint8Array) => void,
  ): void;
  createHash(name: "sha256"): { update(bytes: Uint8Array): unknown; digest(): Uint8Array };
}

/** `nodeTools(await import("node:crypto"))` */
export function nodeTools(node: NodeCrypto): Tools {
  const scrypt: Tools["scrypt"] = (passphrase, salt, n) =>
    new Promise((resolve, reject) => {
      const options = { N: n, r: 8, p: 1, maxmem: 2 * 128 * 8 * n };
      node.scrypt(passphrase, salt, 32, options, (error, key) => (error ? reject(error) : resolve(key)));
    });
  return { scrypt, sha256: () => node.createHash("sha256") };
}

export class WrongPassphrase extends Error {
  constructor() {
    super("this passphrase does not open it; the server has no key, and a lost passphrase is lost for good");
  }
}

/** The bytes are not what was stored, or were never sealed by this program: use nothing of them. */
export class Damaged extends Error {
  constructor(what = "it") {
    super(`${what} is damaged, or none of this program's`);
  }
}

const MAGIC = new TextEncoder().encode("ADIUVAB1");
const HEADER = MAGIC.length + 1 + 16; // and the logarithm of scrypt's n, and the salt
const CHUNK = 1024 * 1024;
const TAG = 16;
const LOG_N = 17; // 128 MiB and about half a second
const CHECK = new Uint8Array(12).fill(0xff); // the nonce of what says whether the passphrase is right

/** Seal a file. `logN` is for tests. */
export async function* seal(
  plain: AsyncIterable<Uint8Array>,
  passphrase: string,
  tools: Tools,
  logN: number = LOG_N,
): AsyncGenerator<Uint8Array> {
  const header = Uint8Array.of(...MAGIC, logN, ...crypto.getRandomValues(new Uint8Array(16)));
  const key = await keyOf(passphrase, header, tools);
  yield header;
  yield await encrypt(key, CHECK, new Uint8Array(), header);
  let number = 0;
  for await (const { bytes, isLast } of inChunks(plain, CHUNK)) {
    yield await encrypt(key, nonceOf(number++, isLast), bytes, header);
  }
}

/** Open a sealed file. After an error what came before is worth nothing. @throws WrongPassphrase, Damaged */
export async function* open(
  sealed: AsyncIterable<Uint8Array>,
  passphrase: string,
  tools: Tools,
): AsyncGenerator<Uint8Array> {
  const reader = new Reader(sealed);
  const header = await reader.take(HEADER);
  if (header.length < HEADER || !MAGIC.every((byte, at) => header[at] === byte)) throw new Damaged();
  const logN = header[MAGIC.length]!;
  if (logN < 14 || logN > 20) throw new Damaged(); // else a header could ask for any memory
  const key = await keyOf(passphrase, header, tools);
  const check = await decrypt(key, CHECK, await reader.take(TAG), header);
  if (!check) throw new WrongPassphrase();
  let number = 0;
  for await (const { bytes, isLast } of inChunks(reader.rest(), CHUNK + TAG)) {
    const opened = await decrypt(key, nonceOf(number++, isLast), bytes, header);
    if (!opened) throw new Damaged();
    yield opened;
  }
}

/** The chunks that a sealed file of this size has: the history of backups shows them. */
export function chunksOf(sealedSize: number): number {
  return Math.max(1, Math.ceil((sealedSize - HEADER - TAG) / (CHUNK + TAG)));
}

/**
 * Seals records with a key of 32 random bytes, which the app keeps. What is sealed for one record opens as no other.
 * That the server gives an older version of the same record is not seen here: compare `version`.
 */
export class RecordSeal {
  private constructor(private readonly key: CryptoKey) {}

  static async withKey(key: Uint8Array): Promise<RecordSeal> {
    if (key.length !== 32) throw new RangeError("a key has 32 bytes");
    return new RecordSeal(await crypto.subtle.importKey("raw", key as Uint8Array<ArrayBuffer>, "AES-GCM", false, ["encrypt", "decrypt"]));
  }

  async seal(table: string, id: string, plain: Uint8Array): Promise<Uint8Array> {
    const nonce = crypto.getRandomValues(new Uint8Array(12));
    return joined([nonce, await encrypt(this.key, nonce, plain, named(table, id))]);
  }

  /** @throws Damaged */
  async open(table: string, id: string, sealed: Uint8Array): Promise<Uint8Array> {
    const opened = await decrypt(this.key, sealed.slice(0, 12), sealed.slice(12), named(table, id));
    if (!opened) throw new Damaged("the record");
    return opened;
  }
}

function named(table: string, id: string): Uint8Array {
  return new TextEncoder().encode(`adiuva record v1\n${table}\n${id}`);
}

function nonceOf(number: number, isLast: boolean): Uint8Array {
  const nonce = new Uint8Array(12); // eleven bytes of number, of which JavaScript counts the last six
  new DataView(nonce.buffer).setBigUint64(3, BigInt(number));
  nonce[11] = Number(isLast);
  return nonce;
}

async function keyOf(passphrase: string, header: Uint8Array, tools: Tools): Promise<CryptoKey> {
  const salt = header.slice(MAGIC.length + 1);
  const raw = await tools.scrypt(new TextEncoder().encode(passphrase), salt, 2 ** header[MAGIC.length]!);
  return crypto.subtle.importKey("raw", raw as Uint8Array<ArrayBuffer>, "AES-GCM", false, ["encrypt", "decrypt"]);
}

async function encrypt(key: CryptoKey, iv: Uint8Array, bytes: Uint8Array, about: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.encrypt(gcm(iv, about), key, bytes as Uint8Array<ArrayBuffer>));
}

/** undefined if it is not what was sealed. */
async function decrypt(key: CryptoKey, iv: Uint8Array, bytes: Uint8Array, about: Uint8Array): Promise<Uint8Array | undefined> {
  try {
    return new Uint8Array(await crypto.subtle.decrypt(gcm(iv, about), key, bytes as Uint8Array<ArrayBuffer>));
  } catch {
    return undefined;
  }
}

function gcm(iv: Uint8Array, about: Uint8Array): AesGcmParams {
  return { name: "AES-GCM", iv: iv as Uint8Array<ArrayBuffer>, additionalData: about as Uint8Array<ArrayBuffer> };
}

/** Pieces of any sizes, taken in sizes of one's own. */
class Reader {
  private readonly source: AsyncIterator<Uint8Array>;
  private held: Uint8Array = new Uint8Array();

  constructor(source: AsyncIterable<Uint8Array>) {
    this.source = source[Symbol.asyncIterator]();
  }

  /** As many bytes, or all that are left. */
  async take(size: number): Promise<Uint8Array> {
    if (this.held.length >= size) return this.split(this.held, size);
    const pieces = [this.held];
    let length = this.held.length;
    while (length < size) {
      const { value, done } = await this.source.next();
      if (done) break;
      pieces.push(value);
      length += value.length;
    }
    return this.split(joined(pieces), size);
  }

  private split(all: Uint8Array, size: number): Uint8Array {
    this.held = all.subarray(size);
    return all.slice(0, size);
  }

  async *rest(): AsyncGenerator<Uint8Array> {
    yield this.held;
    for (;;) {
      const { value, done } = await this.source.next();
      if (done) return;
      yield value;
    }
  }
}

async function* inChunks(source: AsyncIterable<Uint8Array>, size: number): AsyncGenerator<{ bytes: Uint8Array; isLast: boolean }> {
  const reader = new Reader(source);
  let chunk = await reader.take(size);
  for (;;) {
    const following = await reader.take(size);
    yield { bytes: chunk, isLast: following.length === 0 };
    if (following.length === 0) return;
    chunk = following;
  }
}

export function joined(pieces: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
