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
    /** What it adds, such as `fields` of a form, or the `run_id` of a run that is live already. */
    readonly body: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

/**
 * What the device's passkey says to a challenge. In a browser:
 * `async (options) => (await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) })).toJSON()`
 */
export type SignWithPasskey = (options: Record<string, unknown>) => unknown;

/** One of these shows that it is really the user. */
export type Proof =
  | { /** Six digits of the authenticator app; each works once. */ code: string }
  | { recovery_code: string }
  | { passkey: { /** Of the challenge that was answered. */ handle: string; /** What the passkey said to it. */ credential: unknown } };

/** The password was right, and the account asks for more: `answer` finishes signing in. */
export class SecondFactorRequired extends Refused {
  /** Such as `totp`, `recovery_code`, `passkey`. */
  readonly methods: string[];
  /** Unix seconds until which `answer` works. */
  readonly expiresAt: number;

  constructor(
    refused: Refused,
    private readonly server: string,
    private readonly options: AccountOptions,
  ) {
    super(refused.status, refused.code, refused.message, refused.body);
    this.methods = refused.body["methods"] as string[];
    this.expiresAt = refused.body["expires_at"] as number;
  }

  /** @throws Refused for a wrong code (`second_factor_refused`); another may be tried while there is time. */
  answer(proof: Proof): Promise<Account> {
    return Account.enter(this.server, "auth/login/second-factor", { ticket: this.body["ticket"], ...proof }, this.options);
  }

  /** @throws Refused if the passkey is none of the account's (`second_factor_refused`). */
  async answerWithPasskey(sign: SignWithPasskey): Promise<Account> {
    return this.answer({ passkey: await signChallenge(this.server, { ticket: this.body["ticket"] }, sign, this.options) });
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

  /** @throws Refused; SecondFactorRequired if the account has a second factor. */
  static async signIn(server: string, email: string, password: string, options: AccountOptions = {}): Promise<Account> {
    try {
      return await Account.enter(server, "auth/login", { email, password }, options);
    } catch (error) {
      if (!(error instanceof Refused) || error.code !== "second_factor_required") throw error;
      throw new SecondFactorRequired(error, server, options);
    }
  }

  /** With a passkey alone: no address, no password. Its device must verify who holds it. @throws Refused */
  static async signInWithPasskey(server: string, sign: SignWithPasskey, options: AccountOptions = {}): Promise<Account> {
    return Account.enter(server, "auth/login/passkey", await signChallenge(server, {}, sign, options), options);
  }

  /** Sign in at a path whose answer is tokens. @throws Refused */
  static async enter(server: string, path: string, body: unknown, options: AccountOptions = {}): Promise<Account> {
    const tokens = await post<Tokens>(server, path, body, options.fetch);
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

  /** A request below /api/v1 whose body and answer are JSON. @throws Refused */
  async rest<T>(method: string, path: string, body?: unknown): Promise<T> {
    return asJson<T>(await this.request(method, path, jsonBody(body)));
  }

  /** Any request below /api/v1, signed in; a refused token is refreshed once. @throws Refused */
  async request(method: string, path: string, given: Body = {}): Promise<Response> {
    const token = await this.accessToken();
    try {
      return await send(this.server, method, path, given, token, this.options.fetch);
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 401) throw error;
      if (token === this.tokens.access_token) await this.refresh();
      return send(this.server, method, path, given, this.tokens.access_token, this.options.fetch);
    }
  }

  /** The socket's address, with a ticket that is good once: no runtime's WebSocket needs to send a header. */
  async socketUrl(): Promise<string> {
    const { ticket } = await this.rest<{ ticket: string }>("POST", "auth/ws-ticket");
    return `${this.server.replace(/^http/, "ws").replace(/\/$/, "")}/api/v1/ws/device?ticket=${encodeURIComponent(ticket)}`;
  }
}

async function signChallenge(server: string, body: unknown, sign: SignWithPasskey, { fetch }: AccountOptions) {
  type Challenge = { handle: string; options: Record<string, unknown> };
  const { handle, options } = await post<Challenge>(server, "auth/login/passkey-options", body, fetch);
  return { handle, credential: await sign(options) };
}

/** What a request brings beside its method and path. */
export interface Body {
  headers?: Record<string, string>;
  body?: string | Blob;
}

function jsonBody(body: unknown): Body {
  return body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function post<T>(server: string, path: string, body: unknown, using?: typeof fetch): Promise<T> {
  return asJson<T>(await send(server, "POST", path, jsonBody(body), undefined, using));
}

async function send(
  server: string,
  method: string,
  path: string,
  { headers, body }: Body,
  token: string | undefined,
  using: typeof fetch = fetch,
): Promise<Response> {
  const answer = await using(`${server.replace(/\/$/, "")}/api/v1/${path}`, {
    method,
    headers: { Accept: "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}), ...headers },
    ...(body === undefined ? {} : { body }),
  });
  if (answer.ok || answer.status === 304) return answer;
  const found = await asJson<{ code?: string; message?: string }>(answer);
  const { code, message } = found;
  const said = message ?? `the server answered ${answer.status}`;
  throw new Refused(answer.status, code ?? "error", said, found as Record<string, unknown>);
}

async function asJson<T>(answer: Response): Promise<T> {
  const text = await answer.text();
  return (text && answer.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : {}) as T;
}
