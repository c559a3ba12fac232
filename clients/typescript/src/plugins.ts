/** Checks what the marketplace hands out: a package by its signature, and the list of what was revoked. */

/** Raw Ed25519 public keys in base64, by id. An app brings the ones it trusts; it does not ask the server for them. */
export type PublicKeys = Readonly<Record<string, string>>;

/** What `POST /plugins/{id}/install` and `GET /plugins/{id}` say of a version. */
export interface SignedPlugin {
  slug: string;
  version: string;
  sha256: string;
  size: number;
  permissions: readonly string[];
  reviewed_at: string;
  signature: string;
  key_id: string;
}

export interface Revoked {
  plugin: string;
  version: string;
  reason: string;
}

/** What `GET /plugins/revocations` answers. */
export interface RevocationList {
  statement: { counter: number; issued_at: string; expires_at: string; revoked: readonly Revoked[] };
  signature: string;
  key_id: string;
}

export type RefusalCode = "unknown_key" | "bad_signature" | "other_bytes" | "replayed" | "expired";

/** Do not install, or do not use. */
export class PluginRefused extends Error {
  constructor(readonly code: RefusalCode) {
    super(
      {
        unknown_key: "it is signed with a key that this app does not know",
        bad_signature: "it is not what was signed",
        other_bytes: "the package is not the one that was reviewed",
        replayed: "the list of revocations is older than one that was seen",
        expired: "the list of revocations is too old: somebody may hold newer ones back",
      }[code],
    );
    this.name = "PluginRefused";
  }
}

/** Raises PluginRefused unless these bytes are the package that was reviewed. */
export async function verifyPlugin(plugin: SignedPlugin, bytes: Uint8Array, keys: PublicKeys): Promise<void> {
  await verify("plugin", plugin, keys, {
    id: plugin.slug,
    version: plugin.version,
    sha256: plugin.sha256,
    size: plugin.size,
    permissions: [...plugin.permissions].sort(),
    reviewed_at: toTheSecond(plugin.reviewed_at),
  });
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== plugin.sha256 || bytes.length !== plugin.size) throw new PluginRefused("other_bytes");
}

/** The newest list of revocations that was seen. Keep `counter` where the app keeps its settings. */
export class Revocations {
  #revoked = new Map<string, string>();
  #expires = 0;

  constructor(
    readonly keys: PublicKeys,
    public counter = 0,
  ) {}

  /** Take a list. Raises PluginRefused, and keeps what it had, if the list is forged, older than one seen, or too old. */
  async accept(list: RevocationList, now: Date = new Date()): Promise<void> {
    await verify("revocations", list, this.keys, list.statement);
    const { counter, expires_at, revoked } = list.statement;
    if (!Number.isSafeInteger(counter) || counter < this.counter) throw new PluginRefused("replayed");
    const expires = Date.parse(expires_at);
    if (!(expires > now.getTime())) throw new PluginRefused("expired");
    this.counter = counter;
    this.#expires = expires;
    this.#revoked = new Map(revoked.map((each) => [`${each.plugin} ${each.version}`, each.reason]));
  }

  /** Why a version is not to be used; undefined if it may be. It is disabled, not deleted: it may be restored. */
  reason(plugin: string, version: string): string | undefined {
    return this.#revoked.get(`${plugin} ${version}`);
  }

  /** Whether the list still counts. Without one that does, install nothing new. */
  isFresh(now: Date = new Date()): boolean {
    return this.#expires > now.getTime();
  }
}

async function verify(
  purpose: "plugin" | "revocations",
  signed: { signature: string; key_id: string },
  keys: PublicKeys,
  statement: unknown,
): Promise<void> {
  const known = Object.hasOwn(keys, signed.key_id) ? keys[signed.key_id] : undefined;
  if (known === undefined) throw new PluginRefused("unknown_key");
  const key = await crypto.subtle.importKey("raw", fromBase64(known), "Ed25519", false, ["verify"]);
  const text = new TextEncoder().encode(`adiuva ${purpose} v1\n${canonical(statement)}`);
  if (!(await crypto.subtle.verify("Ed25519", key, fromBase64(signed.signature), text))) {
    throw new PluginRefused("bad_signature");
  }
}

/** JSON with sorted keys and without spaces, as the server signs it. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([name, each]) => `${JSON.stringify(name)}:${canonical(each)}`).join(",")}}`;
}

function toTheSecond(time: string): string {
  return `${new Date(time).toISOString().slice(0, 19)}Z`;
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    throw new PluginRefused("bad_signature");
  }
}
