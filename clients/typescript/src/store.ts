/** The user's rows: what a device has to do, and a store in memory. */

import { LIMITS } from "./protocol.js";
import type { Filters, Origin, Rows, TableName, ToolCallBody, ToolResultBody } from "./protocol.js";

/** A result without its id: `row`, `rows`, `results`, `deleted`, `ok`, or `error`. */
export type Outcome = Omit<ToolResultBody, "id">;
export type Row<T extends TableName = TableName> = Rows[T];

export interface Store {
  /** Do one call. An insert's `origin` says from which run and file it is, if an agent found it: keep it to show it. What it throws becomes the call's `error`. */
  apply(call: ToolCallBody): Promise<Outcome> | Outcome;
  /** Results of writes by the ids of their calls. Keep them for 30 days, where the rows are. */
  applied: {
    get(id: string): Promise<Outcome | undefined> | Outcome | undefined;
    set(id: string, outcome: Outcome): unknown;
  };
}

const WRITES = new Set(["insert", "update", "delete", "vector_upsert"]);

/** The answer to a call. A write whose id was applied is not done again. */
export async function answer(store: Store, call: ToolCallBody): Promise<ToolResultBody> {
  const writes = WRITES.has(call.action);
  const known = writes ? await store.applied.get(call.id) : undefined;
  if (known) return { id: call.id, ...known };
  let outcome: Outcome;
  try {
    outcome = await store.apply(call);
  } catch (error) {
    outcome = { error: error instanceof Error ? error.message : String(error) };
  }
  if (writes) await store.applied.set(call.id, outcome);
  const result = { id: call.id, ...outcome };
  if (new TextEncoder().encode(JSON.stringify(result)).length <= LIMITS.MAX_FRAME_BYTES - 1024) return result;
  return { id: call.id, error: "the result is too large for one frame", code: "too_large" };
}

type AnyRow = Record<string, unknown> & { id: string };

const DEFAULTS: Partial<Record<TableName, Record<string, unknown>>> = {
  tasks: { status: "todo", priority: "medium", isAiSuggested: 0, isApproved: 0 },
  projects: { status: "active" },
  timelines: { isAiSuggested: 0, isApproved: 0 },
};

/** Rows in memory: for tests, and to see what a store does. */
export class MemoryStore implements Store {
  readonly rows = new Map<TableName, Map<string, AnyRow>>();
  readonly applied = new Map<string, Outcome>();
  /** Where the rows are from that agents found, by the rows' ids. */
  readonly origins = new Map<string, Origin>();
  private readonly vectors = new Map<string, { content: string; vector: number[] }>();

  apply(call: ToolCallBody): Outcome {
    const data = (call.data ?? {}) as Record<string, unknown>;
    const id = String(data["id"] ?? "");
    switch (call.action) {
      case "select":
        return { rows: this.select(table(call), call.filters ?? {}, call.limit ?? Infinity, call.offset ?? 0) };
      case "get":
        return { row: this.of(table(call)).get(id) ?? null };
      case "insert": {
        const row = this.insert(table(call), data);
        if (call.origin) this.origins.set(row.id, call.origin);
        return { row };
      }
      case "update":
        return { row: this.update(table(call), id, (data["updates"] ?? {}) as Record<string, unknown>) };
      case "delete":
        return { deleted: this.of(table(call)).delete(id) };
      case "vector_upsert":
        this.vectors.set(id, { content: String(data["content"]), vector: call.vector ?? [] });
        return { ok: true };
      case "vector_search":
        return { results: this.search(call.vector ?? [], call.limit ?? 10) };
      default:
        throw new Error("this device does not know that action");
    }
  }

  insert(name: TableName, data: Record<string, unknown>): AnyRow {
    const now = Date.now();
    const made = { id: crypto.randomUUID(), createdAt: now, ...(name === "notes" ? { updatedAt: now } : {}) };
    const row = { ...DEFAULTS[name], ...data, ...made };
    this.of(name).set(row.id, row);
    return row;
  }

  private update(name: TableName, id: string, updates: Record<string, unknown>): AnyRow {
    const row = this.of(name).get(id);
    if (!row) throw new Error("there is no such row");
    Object.assign(row, updates, { id }, name === "notes" ? { updatedAt: Date.now() } : {});
    return row;
  }

  private select(name: TableName, filters: Filters, limit: number, offset: number): AnyRow[] {
    const given = Object.entries(filters).filter(([, value]) => value !== null && value !== undefined);
    let found = [...this.of(name).values()];
    for (const [filter, value] of given) {
      if (filter !== "orderBy") found = found.filter((row) => fits(row, filter, value));
    }
    if (name === "projects" && !filters.status && !filters.includeArchived) {
      found = found.filter((row) => row["status"] !== "archived");
    }
    if (filters.orderBy) found = ordered(found, filters.orderBy);
    return found.slice(offset, offset + limit);
  }

  private search(vector: number[], limit: number): Record<string, unknown>[] {
    return [...this.vectors]
      .filter(([, kept]) => kept.vector.length === vector.length)
      .map(([id, kept]) => ({ id, content: kept.content, score: cosine(kept.vector, vector) }))
      .sort((a, b) => b.score - a.score)
      .slice(0, limit);
  }

  private of(name: TableName): Map<string, AnyRow> {
    let found = this.rows.get(name);
    if (!found) this.rows.set(name, (found = new Map()));
    return found;
  }
}

function table(call: ToolCallBody): TableName {
  if (!call.table) throw new Error("the call names no table");
  return call.table;
}

function fits(row: AnyRow, filter: string, value: unknown): boolean {
  const due = (row["dueDate"] ?? row["date"]) as number | null | undefined;
  switch (filter) {
    case "projectId":
    case "status":
    case "taskId":
    case "clientId":
      return row[filter] === value;
    case "dueDateFrom":
      return typeof due === "number" && due >= Number(value);
    case "dueDateTo":
      return typeof due === "number" && due <= Number(value);
    case "search": {
      const texts = Object.entries(row).filter(([key, cell]) => typeof cell === "string" && !/(^id|Id|^status|^priority)$/.test(key));
      const text = texts.map(([, cell]) => cell).join(" ").toLowerCase();
      return String(value).toLowerCase().split(/\s+/).every((word) => text.includes(word));
    }
    case "includeArchived":
      return true;
    default:
      throw new Error(`there is no filter named ${filter}`);
  }
}

const RANKS: Record<string, number> = { high: 0, medium: 1, low: 2, todo: 0, in_progress: 1, done: 2, active: 0, archived: 1 };

/** Rows in the order of `column`, `column desc` or `-column`; equal ones as they were made, or the reverse. */
function ordered(rows: AnyRow[], by: string): AnyRow[] {
  const [word = "", direction = "asc"] = by.split(/\s+/);
  const name = word.replace(/^-/, "");
  const down = (direction.toLowerCase() === "desc") !== word.startsWith("-");
  const key = (row: AnyRow) => {
    const cell = row[name] as string | number | null | undefined;
    if (name === "status" || name === "priority") return RANKS[String(cell)];
    return typeof cell === "string" ? cell.toLowerCase() : cell;
  };
  return (down ? [...rows].reverse() : rows).sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x == null || y == null) return Number(x == null) - Number(y == null);
    return x < y === down ? Number(x !== y) : -Number(x !== y);
  });
}

function cosine(a: number[], b: number[]): number {
  const dot = (x: number[], y: number[]) => x.reduce((sum, value, place) => sum + value * (y[place] ?? 0), 0);
  return dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);
}
