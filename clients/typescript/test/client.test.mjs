// Against a running server: SERVER, EMAIL and PASSWORD name it. Started by tests/clients/test_typescript.py.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before, test } from "node:test";
import { WebSocket } from "ws";
import { Account, Client, MemoryStore, answer, Refused } from "../dist/index.js";

const { SERVER, EMAIL, PASSWORD } = process.env;
const saved = [];
const sockets = [];
class Watched extends WebSocket {
  constructor(url) {
    super(url);
    sockets.push(this);
  }
}
let account, client, store;

before(async () => {
  account = await Account.signIn(SERVER, EMAIL, PASSWORD, { save: (tokens) => saved.push(tokens) });
  store = new MemoryStore();
  store.insert("tasks", { title: "Call Ada" });
  const text = "Promised: two layout drafts.";
  const sha256 = createHash("sha256").update(text).digest("hex");
  client = new Client(account, {
    deviceId: "from node",
    store,
    files: {
      list: () => [{ path: "/papers/a.md", sha256, size: text.length, mtime: 1_700_000_000_000 }],
      read: async () => ({ text }),
    },
    WebSocket: Watched,
    sleep: async () => undefined,
  });
  const ack = await client.connect();
  assert.equal(ack.protocol, 2);
});

after(() => client.close());

test("a wrong password is refused with the server's code", async () => {
  await assert.rejects(Account.signIn(SERVER, EMAIL, "wrong"), (error) => error instanceof Refused && error.status === 401);
});

test("requests at the same time share one refresh, and its tokens are saved", async () => {
  const before = saved.length;
  await Promise.all([account.refresh(), account.refresh()]);
  assert.equal(saved.length, before + 1);
  assert.equal((await account.rest("GET", "auth/me")).email, EMAIL);
});

test("an answer comes as frames, with the rows that the store gave", async () => {
  const chat = client.ask("list my tasks");
  const types = [];
  for await (const frame of chat) types.push(frame.type);
  const end = await chat.end;
  assert.equal(types[0], "stream_start");
  assert.equal(types.at(-1), "stream_end");
  assert.equal(end.finish, "stop");
  assert.equal(chat.text, "There is one task.");
  assert.ok(chat.conversationId);
});

test("a stream goes on over a lost connection, each piece once", async () => {
  const chat = client.ask("tell me a story");
  for await (const frame of chat) {
    if (frame.type === "stream_start") sockets.at(-1).terminate();
  }
  assert.equal((await chat.end).finish, "stop");
  assert.equal(chat.text, "Once upon a time.");
  assert.ok(sockets.length >= 2);
});

test("a write that comes again is not done again", async () => {
  const call = { id: "call-1", action: "insert", table: "tasks", data: { title: "Once" } };
  const [first, second] = [await answer(store, call), await answer(store, call)];
  assert.deepEqual(first, second);
  assert.equal([...store.rows.get("tasks").values()].filter((row) => row.title === "Once").length, 1);
});

test("a result that is longer than a frame says so instead", async () => {
  const large = new MemoryStore();
  for (let row = 0; row < 3; row++) large.insert("notes", { title: "Long", content: "é".repeat(200_000) });
  const result = await answer(large, { id: "call-2", action: "select", table: "notes" });
  assert.equal(result.code, "too_large");
  assert.equal(result.rows, undefined);
});
