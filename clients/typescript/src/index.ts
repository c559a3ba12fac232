export * from "./account.js";
export * from "./chat.js";
export { Client, Closed } from "./client.js";
export type { AskOptions, ClientOptions, Socket } from "./client.js";
export * from "./protocol.js";
export type { Files } from "./runs.js";
export * from "./store.js";
