"""Fake sign-in of an organisation: an HTTP server on loopback that speaks OpenID Connect, and misbehaves on order.

    with Oidc() as idp:                                # runs in a thread; any process may call it
        settings.SSO_NETWORKS = ["127.0.0.0/8"]
        idp.person = {"sub": "1", "email": "ada@example.com", "email_verified": True}
        back = idp.sign_in(authorization_url)          # acts as the browser; returns the redirect address
        idp.claims = {"aud": "somebody else"}          # what the next ID tokens say otherwise; None takes a claim away
        idp.claims = {"exp": lambda now: now - 61}     # the same by the clock, in Unix seconds
        idp.faults = {"alg_none", "slow_token"}        # see FAULTS
        idp.rotate()                                   # sign with a new key from now on; the old one is gone
        idp.leaves("1")                                # the person's refresh tokens are refused from now on

It checks what real providers check: client, redirect address, PKCE, and that a code is used once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import threading
import time
from typing import Any, Final
from urllib.parse import unquote_plus, urlencode

import httpx
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.fakes.provider import WAIT_S

CLIENT, SECRET = "adiuva at the team", "a secret: with/signs"
FAULTS: Final = frozenset(
    {
        "alg_none", "alg_hs256", "tampered", "unknown_kid", "no_kid",  # how a token is signed
        "discovery_500", "jwks_500", "token_500", "token_html", "slow_token", "huge_discovery", "other_issuer",
        "redirect_discovery", "drips", "inner_jwks", "no_id_token",
        "denies", "no_refresh", "post_secret", "invalid_client",
    }
)  # fmt: skip


class Oidc:
    """`requests` holds the method, path and form of all requests so far. `life_s`: of ID tokens."""

    def __init__(self, *, kind: str = "EC") -> None:
        self.kind = kind
        self._thread = threading.Thread(target=self._serve, name="oidc", daemon=True)
        self._ready = threading.Event()
        self._browser = httpx.Client(follow_redirects=False, timeout=WAIT_S, trust_env=False)
        self.reset()

    def reset(self) -> None:
        """Forget everything, for the next test."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.person: dict[str, Any] = {"sub": "1", "email": "ada@example.com", "email_verified": True}
        self.claims: dict[str, Any] = {}
        self.faults: set[str] = set()
        self.life_s = 300
        self.slow_s = 2.0
        self._codes: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self._renewals: dict[str, dict[str, Any]] = {}
        self._gone: set[str] = set()
        self.rotate()

    def rotate(self) -> None:
        self._key: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if self.kind == "EC"
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )
        self._kid = secrets.token_hex(4)

    def leaves(self, subject: str) -> None:
        self._gone.add(subject)

    def sign_in(self, authorization_url: str) -> str:
        """Open the sign-in and do it, as a browser does. Returns the redirect address."""
        answer = self._browser.get(authorization_url)
        assert answer.status_code == 302, answer.text
        return answer.headers["Location"]

    def asked(self, path: str) -> list[dict[str, str]]:
        return [form for _, at, form in self.requests if at == path]

    # ── The server ──────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Oidc:
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
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/.well-known/openid-configuration", self._discover)
        app.router.add_get("/keys", self._keys)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _note(self, http: web.Request, handler: Any) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await http.post()).items()}
        self.requests.append((http.method, http.path, form or dict(http.query)))
        found: web.StreamResponse = await handler(http)
        return found

    async def _discover(self, http: web.Request) -> web.StreamResponse:
        if "discovery_500" in self.faults:
            return web.Response(status=500)
        if "redirect_discovery" in self.faults:
            raise web.HTTPFound("http://169.254.169.254/latest/meta-data/")
        if "huge_discovery" in self.faults:
            return web.Response(body=b'{"a": "' + b"a" * (1 << 20) + b'"}')
        if "drips" in self.faults:
            answer = web.StreamResponse()
            await answer.prepare(http)
            for _ in range(200):
                await answer.write(b" ")
                await asyncio.sleep(0.05)
            return answer
        said = {
            "issuer": "https://other.example" if "other_issuer" in self.faults else self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": "http://10.0.0.1/keys" if "inner_jwks" in self.faults else f"{self.url}/keys",
            "token_endpoint_auth_methods_supported": [
                "client_secret_post" if "post_secret" in self.faults else "client_secret_basic"
            ],
            "scopes_supported": ["openid", "email"]
            + (["offline_access"] * ("no_refresh" not in self.faults)),
        }
        return web.json_response(said)

    async def _keys(self, http: web.Request) -> web.StreamResponse:
        if "jwks_500" in self.faults:
            return web.Response(status=500)
        algorithm = jwt.get_algorithm_by_name("ES256" if self.kind == "EC" else "RS256")
        key = json.loads(algorithm.to_jwk(self._key.public_key()))
        strange = {"kty": "new", "kid": "strange"}
        return web.json_response({"keys": [strange, {**key, "kid": self._kid, "use": "sig"}]})

    async def _authorize(self, http: web.Request) -> web.StreamResponse:
        """The page to sign in, after it was done."""
        query = dict(http.query)
        assert query["client_id"] == CLIENT and query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256" and query["code_challenge"] and query["nonce"]
        back = {"state": query["state"]}
        if "denies" in self.faults:
            back |= {"error": "access_denied", "error_description": "<script>alert(1)</script>"}
        else:
            back["code"] = code = secrets.token_urlsafe(16)
            self._codes[code] = (query, dict(self.person))
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(back)}")

    async def _token(self, http: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await http.post()).items()}
        if "token_500" in self.faults:
            return web.Response(status=500)
        if "token_html" in self.faults:
            return web.Response(text="<h1>Hello</h1>", content_type="text/html")
        if "slow_token" in self.faults:
            await asyncio.sleep(self.slow_s)
        if "invalid_client" in self.faults or self._client_of(http, form) != (CLIENT, SECRET):
            return web.json_response({"error": "invalid_client"}, status=401)
        if form.get("grant_type") == "refresh_token":
            person = self._renewals.pop(form.get("refresh_token", ""), None)
            query: dict[str, str] = {}
        else:
            query, person = self._codes.pop(form.get("code", ""), ({}, None))
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            if (query.get("redirect_uri"), query.get("code_challenge")) != (
                form.get("redirect_uri"),
                challenge,
            ):
                person = None
        if person is None or person["sub"] in self._gone:
            return web.json_response({"error": "invalid_grant"}, status=400)
        said: dict[str, Any] = {
            "access_token": secrets.token_urlsafe(8),
            "token_type": "Bearer",
            "expires_in": 60,
        }
        if "no_id_token" not in self.faults:
            said["id_token"] = self._id_token(person, query.get("nonce"))
        if "no_refresh" not in self.faults:
            said["refresh_token"] = renewal = secrets.token_urlsafe(16)
            self._renewals[renewal] = person
        return web.json_response(said)

    def _client_of(self, http: web.Request, form: dict[str, str]) -> tuple[str, str]:
        if "post_secret" in self.faults:
            return form.get("client_id", ""), form.get("client_secret", "")
        encoded = http.headers.get("Authorization", "").removeprefix("Basic ")
        client, _, secret = base64.b64decode(encoded).decode().partition(":")
        return unquote_plus(client), unquote_plus(secret)

    def _id_token(self, person: dict[str, Any], nonce: str | None) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT,
            "iat": now,
            "exp": now + self.life_s,
            "nonce": nonce,
            **person,
        }
        asked = {name: value(now) if callable(value) else value for name, value in self.claims.items()}
        claims = {name: value for name, value in {**claims, **asked}.items() if value is not None}
        headers = {"kid": "nobody's" if "unknown_kid" in self.faults else self._kid}
        if "alg_none" in self.faults:
            return jwt.encode(claims, None, algorithm="none", headers=headers)
        if "alg_hs256" in self.faults:  # signed with what everybody knows
            return jwt.encode(claims, self._kid * 8, algorithm="HS256", headers=headers)
        if "no_kid" in self.faults:
            headers = {}
        token = jwt.encode(
            claims, self._key, algorithm="ES256" if self.kind == "EC" else "RS256", headers=headers
        )
        if "tampered" in self.faults:
            head, body, signature = token.split(".")
            padded = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            changed = json.dumps({**padded, "sub": "admin"}).encode()
            return f"{head}.{base64.urlsafe_b64encode(changed).decode().rstrip('=')}.{signature}"
        return token
