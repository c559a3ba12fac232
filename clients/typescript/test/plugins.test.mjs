// What the server signed (plugin-signatures.json, which tests/unit/marketplace/test_signing.py makes sure of) is good here,
// and nothing else is.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { PluginRefused, Revocations, verifyPlugin } from "../dist/index.js";

const { keys, plugin, bytes: encoded, lists } = JSON.parse(readFileSync(new URL("plugin-signatures.json", import.meta.url)));
const bytes = Uint8Array.from(Buffer.from(encoded, "base64"));
const refusedAs = (code) => (error) => error instanceof PluginRefused && error.code === code;
const [older, newer] = lists;
const soon = new Date(newer.statement.issued_at);

test("the package that was reviewed is good", async () => {
  await verifyPlugin(plugin, bytes, keys);
});

test("a changed byte of the package is refused, wherever it is", async () => {
  for (let at = 0; at < bytes.length; at++) {
    const changed = Uint8Array.from(bytes);
    changed[at] ^= 1;
    await assert.rejects(verifyPlugin(plugin, changed, keys), refusedAs("other_bytes"));
  }
  await assert.rejects(verifyPlugin(plugin, bytes.slice(1), keys), refusedAs("other_bytes"));
});

test("a changed byte of the signature is refused, and so is each changed part of what it says", async () => {
  const signature = Buffer.from(plugin.signature, "base64");
  for (let at = 0; at < signature.length; at++) {
    const changed = Buffer.from(signature);
    changed[at] ^= 1;
    const forged = { ...plugin, signature: changed.toString("base64") };
    await assert.rejects(verifyPlugin(forged, bytes, keys), refusedAs("bad_signature"));
  }
  for (const change of [
    { slug: "other" },
    { version: "1.2.1" },
    { sha256: "00".repeat(32) },
    { size: plugin.size + 1 },
    { permissions: [...plugin.permissions, "network"] },
    { reviewed_at: "2031-01-01T00:00:00Z" },
    { signature: "no base64!" },
  ]) {
    await assert.rejects(verifyPlugin({ ...plugin, ...change }, bytes, keys), refusedAs("bad_signature"));
  }
  for (const key_id of ["another", "__proto__", "toString"]) {
    await assert.rejects(verifyPlugin({ ...plugin, key_id }, bytes, keys), refusedAs("unknown_key"));
  }
});

test("a list says what was revoked, until a newer one restores it", async () => {
  const known = new Revocations(keys);
  assert.equal(known.isFresh(soon), false);
  await known.accept(older, soon);
  assert.equal(known.reason("weekly-report", "1.2.0"), older.statement.revoked[0].reason);
  assert.equal(known.reason("weekly-report", "1.2.1"), undefined);
  await known.accept(newer, soon);
  assert.equal(known.reason("weekly-report", "1.2.0"), undefined);
  assert.equal(known.counter, newer.statement.counter);
  assert.equal(known.isFresh(soon), true);
});

test("an older list is refused when it is played again, also after a restart of the app", async () => {
  const known = new Revocations(keys);
  await known.accept(newer, soon);
  await assert.rejects(known.accept(older, soon), refusedAs("replayed"));
  assert.equal(known.counter, newer.statement.counter);
  await assert.rejects(new Revocations(keys, known.counter).accept(older, soon), refusedAs("replayed"));
});

test("a list that is too old or was changed is refused, and the known one stays", async () => {
  const known = new Revocations(keys);
  await known.accept(older, soon);
  await assert.rejects(known.accept(newer, new Date(newer.statement.expires_at)), refusedAs("expired"));
  for (const change of [{ counter: 2 ** 40 }, { revoked: [] }, { expires_at: "2099-01-01T00:00:00Z" }]) {
    const forged = { ...older, statement: { ...older.statement, ...change } };
    await assert.rejects(known.accept(forged, soon), refusedAs("bad_signature"));
  }
  assert.notEqual(known.reason("weekly-report", "1.2.0"), undefined);
});
