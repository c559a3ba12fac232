// Against a running server: SERVER, EMAIL and PASSWORD name it. Started by tests/clients/test_typescript.py.
import assert from "node:assert/strict";
import { createHash, sign } from "node:crypto";
import { after, before, test } from "node:test";
import { WebSocket } from "ws";
import { Account, Chat, Client, Closed, FrameRefused, MemoryStore, Refused, SecondFactorRequired, answer } from "../dist/index.js";

const { SERVER, EMAIL, PASSWORD, OTHER_EMAIL, CODE, RECOVERY_CODE, PASSKEY_EMAIL, PASSKEY } = process.env;
const saved = [];
const sockets = [];
const turns = [];
class Watched extends WebSocket {
  constructor(url) {
    super(url);
    sockets.push(this);
  }
}
let account, client, store;

/** What agents may read, as path → text; null cannot be read. */
const folder = new Map([
  ["/papers/a.md", "do call Ada\ndo write the offer"],
  ["/papers/locked.md", null],
  ["/papers/long.md", `do measure\n${" \u00e9".repeat(80_000)}`],
]);
const papers = () => [...folder.keys()];
const sha256 = (text) => createHash("sha256").update(text).digest("hex");
const manifest = (path) => {
  const text = folder.get(path) ?? "";
  return { path, sha256: sha256(text), size: Buffer.byteLength(text), mtime: 1_700_000_000_000 };
};
const read = async (path) => {
  const text = folder.get(path);
  if (text === null) throw new Error("no permission");
  return { text };
};
const titles = () => [...store.rows.get("tasks").values()].map((row) => row.title);

before(async () => {
  account = await Account.signIn(SERVER, EMAIL, PASSWORD, { save: (tokens) => saved.push(tokens) });
  store = new MemoryStore();
  store.insert("tasks", { title: "Call Ada" });
  client = new Client(account, {
    deviceId: "from node",
    store,
    files: { list: () => papers().map(manifest), read },
    onTurn: (chat) => turns.push(chat),
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

test("rows come in the order that the page of the protocol says", async () => {
  const some = new MemoryStore();
  for (const [title, priority, dueDate] of [["b", "low", 2], ["A", "high", null], ["c", "low", 1], ["B", "medium", 2]]) {
    some.insert("tasks", { title, priority, dueDate });
  }
  const by = (orderBy) => some.apply({ id: "1", action: "select", table: "tasks", filters: { orderBy } }).rows.map((row) => row.title).join("");
  assert.deepEqual(["title", "-title", "priority", "priority desc", "dueDate", "dueDate desc"].map(by), ["AbBc", "cBbA", "ABbc", "cbBA", "cbBA", "BbcA"]);
  assert.equal(some.apply({ id: "2", action: "select", table: "tasks", filters: { search: "low" } }).rows.length, 0);
});

test("a result that is longer than a frame says so instead", async () => {
  const large = new MemoryStore();
  for (let row = 0; row < 3; row++) large.insert("notes", { title: "Long", content: "é".repeat(200_000) });
  const result = await answer(large, { id: "call-2", action: "select", table: "notes" });
  assert.equal(result.code, "too_large");
  assert.equal(result.rows, undefined);
});

test("a password that is not enough is followed by a code, or a recovery code", async () => {
  const challenge = await Account.signIn(SERVER, OTHER_EMAIL, PASSWORD).then(assert.fail, (error) => error);
  assert.ok(challenge instanceof SecondFactorRequired);
  assert.deepEqual(challenge.methods, ["totp", "recovery_code"]);
  assert.ok(challenge.expiresAt > Date.now() / 1000);
  await assert.rejects(challenge.answer({ recovery_code: "wrong" }), { code: "second_factor_refused" });
  const tokens = [];
  const other = await challenge.answer({ code: CODE }); // the ticket outlives a wrong code
  assert.equal((await other.rest("GET", "auth/me")).email, OTHER_EMAIL);
  const again = await Account.signIn(SERVER, OTHER_EMAIL, PASSWORD, { save: (made) => tokens.push(made) }).catch((error) => error);
  assert.equal((await (await again.answer({ recovery_code: RECOVERY_CODE })).rest("GET", "auth/me")).email, OTHER_EMAIL);
  assert.equal(tokens.length, 1);
});

/** What a browser's passkey says to a challenge; of another site's address, or with another's key, if told. */
function passkey({ id, key, origin }) {
  return ({ challenge, rpId }) => {
    const said = Buffer.from(JSON.stringify({ type: "webauthn.get", challenge, origin, crossOrigin: false }));
    const verified = 0x05; // somebody was there, and it was its owner
    const data = Buffer.concat([createHash("sha256").update(rpId).digest(), Buffer.from([verified, 0, 0, 0, 0])]);
    const signature = sign("sha256", Buffer.concat([data, createHash("sha256").update(said).digest()]), key);
    const response = { clientDataJSON: said, authenticatorData: data, signature };
    const texts = Object.entries(response).map(([name, bytes]) => [name, bytes.toString("base64url")]);
    return { id, rawId: id, type: "public-key", clientExtensionResults: {}, response: Object.fromEntries(texts) };
  };
}

test("a passkey is the second step, or signs in alone", async () => {
  const held = JSON.parse(PASSKEY);
  const challenge = await Account.signIn(SERVER, PASSKEY_EMAIL, PASSWORD).then(assert.fail, (error) => error);
  assert.ok(challenge.methods.includes("passkey"));
  const elsewhere = passkey({ ...held, origin: "https://elsewhere.example" });
  await assert.rejects(challenge.answerWithPasskey(elsewhere), { code: "second_factor_refused" });
  const second = await challenge.answerWithPasskey(passkey(held));
  assert.equal((await second.rest("GET", "auth/me")).email, PASSKEY_EMAIL);
  const saved = [];
  const alone = await Account.signInWithPasskey(SERVER, passkey(held), { save: (tokens) => saved.push(tokens) });
  assert.equal((await alone.rest("GET", "auth/me")).email, PASSKEY_EMAIL);
  assert.equal(saved.length, 1);
  await assert.rejects(Account.signInWithPasskey(SERVER, elsewhere), (error) => error instanceof Refused && error.status === 401);
});

test("a delete waits for its approval, and a no is kept to", async () => {
  for (const approved of [false, true]) {
    const row = store.insert("tasks", { title: "Old" });
    const chat = client.ask(`delete ${row.id}`);
    const asked = [];
    for await (const frame of chat) {
      if (frame.type !== "approval_request") continue;
      asked.push(frame.summary);
      assert.ok(store.rows.get("tasks").has(row.id));
      client.approve(frame.id, approved);
    }
    assert.equal(asked.length, 1);
    assert.equal(store.rows.get("tasks").has(row.id), !approved);
    assert.deepEqual((await chat.end).mutations.map((done) => done.action), approved ? ["delete"] : []);
    store.rows.get("tasks").delete(row.id);
  }
});

test("an approval survives a lost connection", async () => {
  const row = store.insert("tasks", { title: "Old" });
  const chat = client.ask(`delete ${row.id}`);
  for await (const frame of chat) {
    if (frame.type !== "approval_request") continue;
    sockets.at(-1).terminate();
    client.approve(frame.id, true);
  }
  assert.equal((await chat.end).finish, "stop");
  assert.ok(!store.rows.get("tasks").has(row.id));
});

test("an answer without an end is cancelled", async () => {
  const chat = client.ask("talk for ever");
  for await (const frame of chat) if (frame.type === "stream_text") chat.cancel();
  assert.equal((await chat.end).finish, "cancelled");
});

test("a message that is added to a turn reaches the model", async () => {
  const apply = store.apply;
  const chat = client.ask("list and wait");
  store.apply = (call) => {
    store.apply = apply;
    chat.steer("only the open ones");
    return store.apply(call);
  };
  await chat.end;
  assert.equal(chat.text, "You added: only the open ones");
  assert.deepEqual(turns, []);
});

test("a message that is added after the end of a turn has a turn of its own", async () => {
  const chat = client.ask("how many tasks are there");
  await chat.end;
  chat.steer("only the open ones");
  while (turns.length === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal((await turns[0].end).finish, "stop");
  assert.equal(turns[0].text, "You added: only the open ones");
  assert.equal(turns[0].conversationId, chat.conversationId);
});

test("a turn that the server does not know after a lost connection fails", async () => {
  const chat = new Chat({ type: "home_request", message: "lost", request_id: "lost" }, assert.fail);
  chat.seen = true;
  client.chats.set("lost", chat);
  sockets.at(-1).terminate();
  await assert.rejects(chat.end, { code: "not_running" });
});

test("a floating request names its domain once, and what was said before is known", async () => {
  const { id } = store.insert("tasks", { title: "Open me" });
  const chat = client.ask("what is this", { scope: { type: "task", id }, memory: false });
  const types = [];
  for await (const frame of chat) types.push(frame.type);
  assert.deepEqual(types.slice(0, 2), ["floating_domain", "stream_start"]);
  const next = client.ask("count the questions", { conversationId: chat.conversationId, scope: { type: "task", id } });
  await next.end;
  assert.equal(next.text, "2");
  store.rows.get("tasks").delete(id);
});

test("a request that the server does not take fails, and with it nothing else", async () => {
  const chat = client.ask("", { requestId: "" });
  await assert.rejects(chat.end, FrameRefused);
  await assert.rejects(async () => { for await (const _ of chat); }, { code: "bad_frame" });
});

test("an agent's run offers files, sends what is asked for, and its records come in a batch with their origin", async () => {
  const heard = [];
  const stop = client.listen((frame) => heard.push(frame));
  const agent = await account.rest("POST", "agents/local", {
    name: "Papers", device_id: "from node", directory_paths: ["/papers"], data_types: ["tasks"],
    file_extensions: [".md"], prompt_template: "Find what is to be done.", schedule_cron: "",
  });
  const run = async () => {
    const { run_id } = await account.rest("POST", `agents/${agent.id}/run`);
    for (;;) {
      const seen = await account.rest("GET", `agents/runs/${run_id}`);
      if (!["queued", "waiting_device", "running", "delivering"].includes(seen.state)) return seen;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  const first = await run();
  assert.deepEqual([first.state, first.files_seen, first.items_created, first.files_failed], ["partial", 3, 3, 1]);
  assert.ok(first.errors.some((error) => JSON.stringify(error).includes("no permission")), JSON.stringify(first.errors));
  assert.deepEqual(titles().filter((title) => !["Call Ada", "Once"].includes(title)).sort(), ["call Ada", "measure", "write the offer"]);
  assert.ok(heard.some((frame) => frame.type === "tool_batch"));
  assert.ok(heard.some((frame) => frame.type === "agent_progress" && frame.run_id === first.id));
  const origins = [...store.origins.values()];
  assert.deepEqual(origins.map((origin) => origin.source).sort(), ["/papers/a.md", "/papers/a.md", "/papers/long.md"]);
  assert.ok(origins.every((origin) => origin.run_id === first.id));
  const fetched = () => heard.filter((frame) => frame.type === "agent_fetch").map((frame) => frame.paths.length);
  assert.deepEqual(fetched(), [3]);
  folder.delete("/papers/locked.md");
  const second = await run();
  assert.deepEqual([second.state, second.files_unchanged, second.items_created], ["success", 2, 0]);
  assert.deepEqual(fetched(), [3, 0]);
  stop();
});

test("closing ends what is under way", async () => {
  const chat = client.ask("talk for ever");
  for await (const frame of chat) if (frame.type === "stream_text") break;
  chat.cancel(); // for the server's sake: the client does not wait for its end
  client.close();
  await client.done;
  await assert.rejects(chat.end, Closed);
});
