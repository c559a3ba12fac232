// The vault, against a running server whose line breaks: SERVER, VAULT_EMAIL and PASSWORD name it. FOLDER has a file that
// the headless device's code sealed, and gets one that it opens; DEVICE is the data of a device that backed up what changed.
import assert from "node:assert/strict";
import * as node from "node:crypto";
import { openAsBlob } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { before, test } from "node:test";
import { Account, Damaged, RecordSeal, Refused, Vault, WrongPassphrase, chunksOf, joined, nodeTools, open, pieces, restored, seal } from "../dist/index.js";

const { SERVER, VAULT_EMAIL, PASSWORD, FOLDER, DEVICE } = process.env;
const PASSPHRASE = "correct horse";
const LOG_N = 14; // quick
const MIB = 1024 * 1024;
const tools = nodeTools(node);
const random = (size) => new Uint8Array(node.randomBytes(size));

async function* once(bytes) {
  yield bytes;
}
async function all(source) {
  const found = [];
  for await (const piece of source) found.push(piece);
  return Buffer.from(joined(found));
}
const sealedBlob = async (plain) => new Blob([await all(seal(once(plain), PASSPHRASE, tools, LOG_N))]);

/** What happens to the next requests: [method, fault] each. */
const faults = [];
const asked = [];
async function breaking(address, given) {
  asked.push(given.method);
  const at = faults.findIndex(([method]) => method === given.method);
  const [, fault] = at < 0 ? [] : faults.splice(at, 1)[0];
  if (fault === "not sent") throw new TypeError("fetch failed");
  const answer = await fetch(address, given);
  if (fault === "answer lost") {
    await answer.arrayBuffer();
    throw new TypeError("fetch failed");
  }
  if (fault === "cut") return cut(answer);
  return answer;
}
/** The answer, whose body breaks off after some of it. */
function cut(answer) {
  const source = pieces(answer.body);
  const body = new ReadableStream({
    async pull(stream) {
      const { value } = await source.next();
      stream.enqueue(value.subarray(0, 100_000));
      stream.error(new TypeError("terminated"));
    },
  }, { highWaterMark: 0 });
  return new Response(body, { status: answer.status, headers: answer.headers });
}

let vault;
/** A time for a backup, later than of all that the account has. */
const nextTime = async () => Math.max(Date.now(), (await vault.backups())[0]?.timestamp ?? 0) + 1;
before(async () => {
  const account = await Account.signIn(SERVER, VAULT_EMAIL, PASSWORD, { fetch: breaking });
  vault = new Vault(account, tools, { sleep: async () => undefined, pieceBytes: MIB });
});

test("a file opens as it was, here and on a headless device", async () => {
  for (const size of [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB]) {
    const plain = random(size);
    const blob = await sealedBlob(plain);
    assert.deepEqual(await all(open(pieces(blob.stream()), PASSPHRASE, tools)), Buffer.from(plain));
    assert.equal(chunksOf(blob.size), Math.max(1, Math.ceil(size / MIB)));
  }
  const plain = await readFile(`${FOLDER}/plain`);
  const theirs = await openAsBlob(`${FOLDER}/by python`);
  assert.deepEqual(await all(open(pieces(theirs.stream()), PASSPHRASE, tools)), plain);
  await writeFile(`${FOLDER}/by node`, await all(seal(once(plain), PASSPHRASE, tools, LOG_N)));
});

test("another passphrase is said to be another; what was changed, cut or moved does not open", async () => {
  const sealed = await all(seal(once(random(3 * MIB)), PASSPHRASE, tools, LOG_N));
  const opened = (bytes, passphrase = PASSPHRASE) => all(open(once(bytes), passphrase, tools));
  await assert.rejects(opened(sealed, "wrong"), WrongPassphrase);
  const [head, chunk] = [41, MIB + 16];
  const flipped = Buffer.from(sealed);
  flipped[head + chunk + 5] ^= 1;
  const chunks = [0, 1, 2].map((at) => sealed.subarray(head + at * chunk, head + (at + 1) * chunk));
  const other = Buffer.from(sealed);
  other[8] = 30; // asks for much memory
  const wrong = [
    flipped, other, sealed.subarray(0, -1), sealed.subarray(0, head + 2 * chunk), sealed.subarray(0, 20), new Uint8Array(),
    Buffer.concat([sealed.subarray(0, head), chunks[1], chunks[0], chunks[2]]), Buffer.concat([sealed, chunks[2]]),
  ];
  for (const bytes of wrong) await assert.rejects(opened(bytes), Damaged);
});

test("a backup goes up over lines that break, each byte once, and comes back", async () => {
  const plain = random(3 * MIB + 7);
  const sealed = await sealedBlob(plain);
  const told = [];
  const earlier = await vault.backups();
  const time = await nextTime();
  faults.push(["PATCH", "not sent"], ["PATCH", "answer lost"], ["HEAD", "not sent"], ["PUT", "answer lost"], ["POST", "not sent"]);
  await vault.backUp(sealed, time, { progress: (sent) => told.push(sent) });
  assert.deepEqual(faults, []);
  assert.equal(told.at(-1), sealed.size);
  const [newest, ...others] = await vault.backups();
  assert.deepEqual(others, earlier.slice(0, others.length)); // the server may keep only so many
  assert.equal(newest.timestamp, time);
  assert.deepEqual([newest.size_bytes, newest.chunk_count, newest.state], [sealed.size, 4, "ok"]);
  faults.push(["GET", "cut"], ["GET", "not sent"], ["GET", "cut"]);
  assert.deepEqual(await all(open(vault.backup(), PASSPHRASE, tools)), Buffer.from(plain));
  assert.deepEqual(faults, []);
  assert.deepEqual(await all(vault.backup(newest.id)), Buffer.from(await sealed.arrayBuffer()));
  await vault.deleteBackup(newest.id);
  await assert.rejects(all(vault.backup(newest.id)), { code: "not_found" });
  assert.deepEqual((await vault.backups()).slice(0, others.length), others);
});

test("what a device sent of its changes is put together, or said to be damaged", async () => {
  const backups = [];
  for await (const backup of vault.allBackups()) backups.push(backup);
  const changed = backups.find((backup) => backup.base !== null);
  const whole = backups.find((backup) => backup.timestamp === changed.base);
  const data = await readFile(DEVICE);
  faults.push(["GET", "cut"]);
  assert.deepEqual(await all(restored(vault, PASSPHRASE, tools, changed.id)), data);
  const before = await all(restored(vault, PASSPHRASE, tools, whole.id));
  assert.notDeepEqual(before, data);
  await assert.rejects(all(restored(vault, "wrong", tools, changed.id)), WrongPassphrase);
  await assert.rejects(vault.deleteBackup(whole.id), { code: "conflict" });
  const without = { allBackups: async function* () { yield changed; }, backup: (id) => vault.backup(id) };
  await assert.rejects(all(restored(without, PASSPHRASE, tools, changed.id)), Damaged);
  const swapped = { allBackups: () => vault.allBackups(), backup: (id) => vault.backup(id === whole.id ? changed.id : id) };
  await assert.rejects(all(restored(swapped, PASSPHRASE, tools, changed.id)), Damaged);
});

test("an upload goes on after a restart, from what had come", async () => {
  const sealed = await sealedBlob(random(3 * MIB));
  const time = await nextTime();
  let upload;
  const stopped = new Error("the app was closed");
  const close = { begun: (id) => (upload = id), progress: () => { throw stopped; } };
  await assert.rejects(vault.backUp(sealed, time, close), stopped);
  const told = [];
  await vault.backUp(sealed, time, { upload, progress: (sent) => told.push(sent) });
  assert.equal(told[0], 2 * MIB);
  assert.deepEqual(await all(vault.backup()), Buffer.from(await sealed.arrayBuffer()));
});

test("a download that is not what was stored is not taken for it", async () => {
  const plain = random(500);
  const id = await vault.create("notes", plain);
  const lying = new Account(SERVER, vault.account.tokens, {
    fetch: async (address, given) => {
      const answer = await fetch(address, given);
      const bytes = new Uint8Array(await answer.arrayBuffer());
      bytes[7] ^= 1;
      return new Response(bytes, { status: answer.status, headers: answer.headers });
    },
  });
  await assert.rejects(new Vault(lying, tools).read(id), Damaged);
  assert.deepEqual((await vault.read(id)).sealed, plain);
});

test("records are sealed for their place, replaced only as they were read, and seen by a cursor", async () => {
  const seals = await RecordSeal.withKey(random(32));
  const id = crypto.randomUUID();
  const text = new TextEncoder().encode("Call Ada");
  faults.push(["POST", "answer lost"]);
  assert.equal(await vault.create("tasks", await seals.seal("tasks", id, text), id), id);
  const { sealed, checksum } = await vault.read(id);
  assert.ok(!Buffer.from(sealed).includes("Ada"));
  assert.deepEqual(await seals.open("tasks", id, sealed), text);
  await assert.rejects(seals.open("tasks", crypto.randomUUID(), sealed), Damaged);
  await assert.rejects((await RecordSeal.withKey(random(32))).open("tasks", id, sealed), Damaged);
  const large = await seals.seal("tasks", id, random(MIB + 100)); // it is uploaded
  const stored = await vault.replace(id, large, checksum);
  assert.equal(stored.version, 2);
  await assert.rejects(vault.replace(id, sealed, checksum), { code: "changed_meanwhile" });
  assert.deepEqual((await vault.read(id)).sealed, large);
  let cursor = "";
  const seen = new Map();
  const look = async () => {
    for await (const part of vault.changes(cursor)) {
      for (const change of part.changes) seen.set(change.id, change);
      cursor = part.cursor;
    }
  };
  await look();
  assert.deepEqual([seen.get(id).version, seen.get(id).deleted], [2, false]);
  await vault.delete(id);
  await look();
  assert.equal(seen.get(id).deleted, true);
  await assert.rejects(vault.read(id), (error) => error instanceof Refused && error.status === 404);
  await vault.undelete(id);
  assert.deepEqual((await vault.read(id)).sealed, large);
});

test("what will not change is not tried again", async () => {
  const before = asked.length;
  await assert.rejects(vault.upload(new Blob(["x"]), "storage", { upload: crypto.randomUUID() }), { status: 404 });
  assert.equal(asked.length, before + 1);
});
