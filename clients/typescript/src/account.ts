/** Sign-in and its tokens. */

export interface Tokens {
  access_token: string;
  refresh_token: string;
  /** Unix seconds of the access token's end. */
  expires_at: number;
}

/** What the server refused, as it said it: a code for programs, a message for people. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    /** What it adds, such as the `ticket` of `second_factor_required`. */
    readonly body: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

export interface AccountOptions {
  /** Called with new tokens before they are used: an older refresh token ends the session. */
  save?: (tokens: Tokens) => unknown;
  fetch?: typeof fetch;
}

/** Seconds before its end at which an access token is replaced. */
const MARGIN_S = 30;

export class Account {
  private refreshing: Promise<Tokens> | undefined;

  constructor(
    readonly server: string,
    private tokens: Tokens,
    private readonly options: AccountOptions = {},
  ) {}

  /** @throws Refused, also for a second factor that is needed: its `body` has the ticket. */
  static async signIn(server: string, email: string, password: string, options: AccountOptions = {}): Promise<Account> {
    const tokens = await post<Tokens>(server, "auth/login", { email, password }, options.fetch);
    await options.save?.(tokens);
    return new Account(server, tokens, options);
  }

  /** A token that is good for some time yet. @throws Refused when the session is over. */
  async accessToken(): Promise<string> {
    if (this.tokens.expires_at - MARGIN_S < Date.now() / 1000) await this.refresh();
    return this.tokens.access_token;
  }

  /** Exchange the tokens for new ones. Callers at the same time share one exchange. */
  refresh(): Promise<Tokens> {
    this.refreshing ??= this.exchange().finally(() => (this.refreshing = undefined));
    return this.refreshing;
  }

  private async exchange(): Promise<Tokens> {
    const body = { refresh_token: this.tokens.refresh_token };
    const tokens = await post<Tokens>(this.server, "auth/refresh", body, this.options.fetch);
    await this.options.save?.(tokens);
    return (this.tokens = tokens);
  }

  /** A request below /api/v1, signed in; a refused token is refreshed once. @throws Refused */
  async rest<T>(method: string, path: string, body?: unknown): Promise<T> {
    const token = await this.accessToken();
    try {
      return await send<T>(this.server, method, path, body, token, this.options.fetch);
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 401) throw error;
      if (token === this.tokens.access_token) await this.refresh();
      return send<T>(this.server, method, path, body, this.tokens.access_token, this.options.fetch);
    }
  }

  /** The socket's address, with a ticket that is good once: no runtime's WebSocket needs to send a header. */
  async socketUrl(): Promise<string> {
    const { ticket } = await this.rest<{ ticket: string }>("POST", "auth/ws-ticket");
    return `${this.server.replace(/^http/, "ws").replace(/\/$/, "")}/api/v1/ws/device?ticket=${encodeURIComponent(ticket)}`;
  }
}

function post<T>(server: string, path: string, body: unknown, using?: typeof fetch): Promise<T> {
  return send<T>(server, "POST", path, body, undefined, using);
}

async function send<T>(
  server: string,
  method: string,
  path: string,
  body: unknown,
  token: string | undefined,
  using: typeof fetch = fetch,
): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (token) headers["Authorization"] = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await using(`${server.replace(/\/$/, "")}/api/v1/${path}`, {
    method,
    headers,
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await answer.text();
  const found: unknown = text && answer.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : {};
  if (answer.ok) return found as T;
  const { code, message } = found as { code?: string; message?: string };
  const said = message ?? `the server answered ${answer.status}`;
  throw new Refused(answer.status, code ?? "error", said, found as Record<string, unknown>);
}
