"""Fake sign-in at Google and Microsoft: an HTTP server on loopback with their endpoints that follows a script.

    with Identity() as identity:                     # runs in a thread; any process may call it
        settings.GOOGLE, settings.MICROSOFT = identity.google(), identity.microsoft()
        back = identity.consent(authorization_url)   # acts as the browser; returns the redirect address
        identity.script(Refuse("invalid_grant"), Hold())
        ...
        assert len(identity.refreshes) == 1 and identity.accepts(access_token)

It checks what the real providers check: client, redirect address, PKCE, and that a code is used once. Each request to a
token endpoint takes the next step of the script, or succeeds if there is none. A step is one of:
    Refuse("invalid_grant")  an OAuth error
    Fail(503, retry_after=7) an error status with an empty body
    Raw(body, …)             exactly these bytes
    Lost()                   grants the tokens, then breaks the connection
    Rotate()                 a new refresh token; the old one becomes invalid
    Bare()                   no refresh token in the answer
    Hold(step)               waits for `.release()`, then takes the step; `.reached` is an event
`script(..., account=...)` limits steps to the requests of that account.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx
import jwt
from aiohttp import web

from tests.fakes.provider import WAIT_S, Hold, Raw

CLIENT, SECRET = "adiuva-of-the-tests", "client-secret-of-the-tests"


@dataclass
class Refuse:
    error: str = "invalid_grant"
    status: int = 400


@dataclass
class Fail:
    status: int = 503
    retry_after: int | str | None = None


@dataclass
class Lost:
    pass


@dataclass
class Rotate:
    pass


@dataclass
class Bare:
    pass


@dataclass
class Request:
    path: str
    form: dict[str, str] = field(default_factory=dict)
    account: str = ""


@dataclass
class _Code:
    provider: str
    query: dict[str, str]
    account: str
    scope: str


@dataclass
class _Grant:
    provider: str
    account: str
    scope: str


class Identity:
    """`requests` holds all requests so far, `refreshes` those with a refresh token. `peak` is the largest number of
    token requests at the same time.

    `account` is the one who consents; `denies` and `leaves_out` name what they do not allow. `life_s` is the lifetime
    of access tokens. For accounts in `rotating` each refresh is a Rotate().
    """

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="identity", daemon=True)
        self._ready = threading.Event()
        self._browser = httpx.Client(follow_redirects=False, timeout=WAIT_S, trust_env=False)
        self.reset()

    def reset(self) -> None:
        """Forget everything, for the next test."""
        self.requests: list[Request] = []
        self.peak = self._running = 0
        self.account, self.denies, self.life_s = "ada@example.com", False, 3600
        self.leaves_out: set[str] = set()
        self.claims: dict[str, Any] = {}  # that an ID token says otherwise
        self.revoke_step: Any = None
        self.rotating: set[str] = set()
        self._steps: dict[str, deque[Any]] = {}
        self._given: dict[str, str] = {}  # access tokens so far → account
        self._codes: dict[str, _Code] = {}
        self._refresh: dict[str, _Grant] = {}
        self._access: dict[str, _Grant] = {}

    def script(self, *steps: Any, account: str = "") -> Identity:
        self._steps.setdefault(account, deque()).extend(steps)
        return self

    @property
    def refreshes(self) -> list[Request]:
        return [request for request in self.requests if request.form.get("grant_type") == "refresh_token"]

    def google(self) -> dict[str, str]:
        """For settings.GOOGLE."""
        at = f"{self.url}/google"
        return {
            "client_id": CLIENT,
            "client_secret": SECRET,
            "auth_uri": f"{at}/auth",
            "token_uri": f"{at}/token",
            "revoke_uri": f"{at}/revoke",
            "api": self.url,
        }

    def microsoft(self) -> dict[str, str]:
        """For settings.MICROSOFT."""
        return {
            "client_id": CLIENT,
            "client_secret": SECRET,
            "tenant": "common",
            "authority": self.url,
            "api": f"{self.url}/v1.0",
        }

    def env(self) -> dict[str, str]:
        """The same as environment variables, for processes."""
        at = f"{self.url}/google"
        return {
            "ADIUVA_GOOGLE_CLIENT_ID": CLIENT,
            "ADIUVA_GOOGLE_CLIENT_SECRET": SECRET,
            "ADIUVA_GOOGLE_AUTH_URI": f"{at}/auth",
            "ADIUVA_GOOGLE_TOKEN_URI": f"{at}/token",
            "ADIUVA_GOOGLE_REVOKE_URI": f"{at}/revoke",
            "ADIUVA_MICROSOFT_CLIENT_ID": CLIENT,
            "ADIUVA_MICROSOFT_CLIENT_SECRET": SECRET,
            "ADIUVA_MICROSOFT_AUTHORITY": self.url,
        }

    def consent(self, authorization_url: str) -> str:
        """Open the consent page and press its button, as a browser does. Returns the redirect address."""
        answer = self._browser.get(authorization_url)
        assert answer.status_code == 302, answer.text
        return answer.headers["Location"]

    def accepts(self, access_token: str) -> bool:
        """Whether the provider's API accepts the token. Otherwise it would answer 401."""
        return access_token in self._access

    def account_of(self, access_token: str) -> str | None:
        found = self._access.get(access_token)
        return found.account if found else None

    def given_to(self, access_token: str) -> str:
        """The account that the token was issued to."""
        return self._given.get(access_token, "")

    def expire(self, account: str = "") -> None:
        """Let all access tokens, or those of one account, expire early."""
        for token in [token for token, grant in self._access.items() if account in ("", grant.account)]:
            del self._access[token]

    def revoke(self, account: str) -> None:
        """The user revokes the permission at the provider."""
        for kept in (self._refresh, self._access):
            for token in [token for token, grant in kept.items() if grant.account == account]:
                del kept[token]

    def grants(self, account: str) -> bool:
        return any(grant.account == account for grant in self._refresh.values())

    # ── The server ──────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Identity:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/google/auth", self._ask)
        app.router.add_post("/google/token", self._token)
        app.router.add_post("/google/revoke", self._take_back)
        app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self._discover)
        app.router.add_get("/{tenant}/oauth2/v2.0/authorize", self._ask)
        app.router.add_post("/{tenant}/oauth2/v2.0/token", self._token)
        app.router.add_route("*", "/{any:.*}", self._nothing)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _nothing(self, http: web.Request) -> web.StreamResponse:
        self.requests.append(Request(http.path_qs))
        raise web.HTTPNotFound

    async def _discover(self, http: web.Request) -> web.StreamResponse:
        self.requests.append(Request(http.path))
        at = f"https://{http.host}/{http.match_info['tenant']}"  # https, as MSAL wants it
        return web.json_response(
            {
                "issuer": f"{at}/v2.0",
                "authorization_endpoint": f"{at}/oauth2/v2.0/authorize",
                "token_endpoint": f"{at}/oauth2/v2.0/token",
            }
        )

    async def _ask(self, http: web.Request) -> web.StreamResponse:
        """The consent page after its button was pressed."""
        query = dict(http.query)
        self.requests.append(Request(http.path, query))
        assert query["client_id"] == CLIENT and query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256" and query["code_challenge"]
        back = {"state": query["state"]}
        if self.denies:
            back |= {"error": "access_denied", "error_description": "<script>alert(1)</script>"}
        else:
            code = secrets.token_urlsafe(16)
            scope = " ".join(word for word in query["scope"].split() if word not in self.leaves_out)
            self._codes[code] = _Code(_provider(http), query, self.account, scope)
            back["code"] = code
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(back)}")

    async def _token(self, http: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await http.post()).items()}
        known = self._refresh.get(form.get("refresh_token", ""))
        account = known.account if known else ""
        self.requests.append(Request(http.path, form, account))
        self._running += 1
        self.peak = max(self.peak, self._running)
        try:
            steps = self._steps.get(account) or self._steps.get("")
            step = steps.popleft() if steps else None
            if isinstance(step, Hold):
                await step.wait()
                step = None if step.step == "released" else step.step
            return self._play(step, http, form)
        finally:
            self._running -= 1

    def _play(self, step: Any, http: web.Request, form: dict[str, str]) -> web.StreamResponse:
        if isinstance(step, Refuse):
            return web.json_response({"error": step.error, "error_description": "a word"}, status=step.status)
        if isinstance(step, Fail):
            headers = {} if step.retry_after is None else {"Retry-After": str(step.retry_after)}
            return web.Response(status=step.status, headers=headers)
        if isinstance(step, Raw):
            return web.Response(
                body=step.body,
                status=step.status,
                headers={"Content-Type": step.content_type, **step.headers},
            )
        status, body = self._granted(form, _provider(http), step)
        if isinstance(step, Lost):
            assert http.transport is not None
            http.transport.abort()
        return web.json_response(body, status=status)

    def _granted(self, form: dict[str, str], provider: str, step: Any) -> tuple[int, dict[str, Any]]:
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT, SECRET):
            return 401, {"error": "invalid_client"}
        claims = None
        if form.get("grant_type") == "authorization_code":
            code = self._codes.pop(form.get("code", ""), None)
            if code is None or code.provider != provider:
                return 400, {"error": "invalid_grant"}
            if code.query["redirect_uri"] != form.get("redirect_uri"):
                return 400, {"error": "redirect_uri_mismatch" if provider == "google" else "invalid_grant"}
            if code.query["code_challenge"] != _challenge(form.get("code_verifier", "")):
                return 400, {"error": "invalid_grant"}
            grant, old = _Grant(provider, code.account, code.scope), None
            name = "email" if provider == "google" else "preferred_username"
            claims = {"aud": CLIENT, "nonce": code.query.get("nonce"), name: grant.account, "sub": "1"}
        else:
            old = form.get("refresh_token", "")
            if (found := self._refresh.get(old)) is None:
                return 400, {"error": "invalid_grant"}
            grant = found
        access = f"access-{secrets.token_urlsafe(16)}"
        self._access[access] = grant
        self._given[access] = grant.account
        rotates = isinstance(step, Rotate) or grant.account in self.rotating
        body: dict[str, Any] = {
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": self.life_s,
            "scope": grant.scope,
        }
        # Google sends a refresh token with a consent alone; Microsoft each time, and the old one stays valid.
        sends = old is None or provider == "microsoft" or rotates
        if sends and not isinstance(step, Bare):
            body["refresh_token"] = renewal = f"refresh-{secrets.token_urlsafe(16)}"
            self._refresh[renewal] = grant
            if rotates and old is not None:
                del self._refresh[old]
        if claims is not None:
            body["id_token"] = jwt.encode(claims | self.claims, "k" * 32, algorithm="HS256")
        return 200, body

    async def _take_back(self, http: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await http.post()).items()}
        self.requests.append(Request(http.path, form))
        if self.revoke_step is not None:
            return self._play(self.revoke_step, http, form)
        grant = self._refresh.get(form["token"]) or self._access.get(form["token"])
        if grant is None:
            return web.json_response({"error": "invalid_token"}, status=400)
        self.revoke(grant.account)
        return web.json_response({})


def _provider(http: web.Request) -> str:
    return "google" if http.path.startswith("/google/") else "microsoft"


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
