"""The client of OpenID Connect: discovery, keys, the code's exchange, and the checks of an ID token.

PyJWT verifies signatures and claims, as it does for our own tokens. All requests go through adiuva.core.public_http,
since an owner names the addresses. All functions block. Secrets are in request bodies and headers, in no error or log.
"""

from __future__ import annotations

import base64
import hmac
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, quote_plus, urlencode

import jwt
import structlog
from django.conf import settings

from adiuva.core import public_http
from adiuva.core.errors import Text
from adiuva.core.http import is_transient
from billing.sso.errors import SsoAway, SsoMisconfigured, SsoRefused

log = structlog.get_logger(__name__)

SCOPES: Final = ("openid", "email", "profile")
_TOTAL_S: Final = 10.0
_MAX_BYTES: Final = 1 << 18
_MAX_TOKEN_CHARS: Final = 1 << 15
_LEEWAY_S: Final = 60  # how far clocks may differ
_KEPT_S: Final = 3600.0
# After an unknown key made us fetch keys, the next unknown one makes us fetch none for this time.
_NO_NEW_KEYS_S: Final = 30.0
_MAX_KEPT: Final = 256
_MAX_KEYS: Final = 40
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,40}")
# Algorithms by a key's type. In none of them could a client's secret, or a public key used as one, sign.
_ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}


@dataclass(frozen=True)
class Client:
    """The configuration that a team's owner has set."""

    issuer: str
    client_id: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Metadata:
    """A provider's description of itself."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    takes_basic: bool  # the secret in a header, else in the body
    gives_refresh: bool  # whether it knows the scope offline_access


@dataclass(frozen=True)
class Tokens:
    id_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


@dataclass(frozen=True)
class _Key:
    """A public key that a provider signs with. `algorithm` is empty if the provider leaves it open."""

    kid: str | None
    type: str
    algorithm: str
    public: Any

    def algorithms(self) -> list[str]:
        possible = _ALGORITHMS.get(self.type, ())
        return [name for name in possible if self.algorithm in ("", name)]


class NoLonger(Exception):
    """The provider says that a refresh token is no longer valid: its person has left, or was signed out there."""


# ── Discovery and keys ────────────────────────────────────────────────────────────────────────────────────


class _Kept:
    """Answers that were fetched, kept for an hour, by address."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, tuple[float, Any]] = {}

    def get(self, address: str) -> Any:
        with self._lock:
            until, value = self._values.get(address, (0.0, None))
        return value if time.monotonic() < until else None

    def set(self, address: str, value: Any, seconds: float = _KEPT_S) -> None:
        with self._lock:
            if len(self._values) >= _MAX_KEPT:
                self._values.clear()
            self._values[address] = time.monotonic() + seconds, value

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


_metadata, _keys, _looked_anew = _Kept(), _Kept(), _Kept()


def forget() -> None:
    """Forget all kept answers, so that they are fetched anew."""
    for kept in (_metadata, _keys, _looked_anew):
        kept.clear()


def discover(issuer: str, *, anew: bool = False) -> Metadata:
    """Return a provider's metadata. Raises SsoAway, SsoMisconfigured."""
    found: Metadata | None = None if anew else _metadata.get(issuer)
    if found is None:
        found = _fetch_metadata(issuer)
        _metadata.set(issuer, found)
    return found


def _fetch_metadata(issuer: str) -> Metadata:
    answer = _ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    said = _json(answer)
    if answer.status != 200 or said is None:
        raise SsoMisconfigured("at this issuer is no description of a sign-in by OpenID Connect")
    if said.get("issuer") != issuer:
        raise SsoMisconfigured("the provider names another issuer than the one that was set")
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    for name in names:
        try:
            public_http.checked(str(said.get(name, "")), _networks())
        except public_http.AddressRefused:
            raise SsoMisconfigured(Text("the provider names no usable {name}", name=name)) from None
    methods = said.get("token_endpoint_auth_methods_supported")
    # Basic is the default, by the specification.
    takes_basic = not isinstance(methods, list) or "client_secret_basic" in methods or not methods
    scopes = said.get("scopes_supported")
    gives_refresh = isinstance(scopes, list) and "offline_access" in scopes
    sign_in, tokens, keys = (str(said[name]) for name in names)
    return Metadata(issuer, sign_in, tokens, keys, takes_basic, gives_refresh)


def _key_of(meta: Metadata, token: str, header: Mapping[str, Any]) -> _Key:
    """Return the key that a token names; its provider may have changed its keys. Raises SsoRefused, SsoAway."""
    kid = header.get("kid")
    keys = _keys.get(meta.jwks_uri)
    is_fresh = keys is None
    if keys is None:
        keys = _fetch_keys(meta)
    key = _chosen(keys, kid)
    if key is None and not is_fresh and _looked_anew.get(meta.jwks_uri) is None:
        _looked_anew.set(meta.jwks_uri, True, _NO_NEW_KEYS_S)
        key = _chosen(_fetch_keys(meta), kid)
    if key is None:
        raise SsoRefused("the sign-in is signed with a key that the provider does not publish")
    return key


def _fetch_keys(meta: Metadata) -> list[_Key]:
    answer = _ask("GET", meta.jwks_uri)
    said = _json(answer)
    listed = said.get("keys") if said else None
    if answer.status != 200 or not isinstance(listed, list):
        raise SsoAway
    keys = []
    for entry in listed[:_MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            continue  # a key of a kind that we do not know
        keys.append(_Key(key.key_id, str(key.key_type), str(entry.get("alg") or ""), key.key))
    _keys.set(meta.jwks_uri, keys)
    return keys


def _chosen(keys: list[_Key], kid: object) -> _Key | None:
    if kid is None:
        return keys[0] if len(keys) == 1 else None
    return next((key for key in keys if key.kid == kid), None)


# ── Signing in ──────────────────────────────────────────────────────────────────────────────────────────


def authorization_url(
    client: Client,
    meta: Metadata,
    *,
    state: str,
    nonce: str,
    challenge: str,
    redirect_uri: str,
    hint: str = "",
) -> str:
    """Return the address at which the browser signs in. `challenge` is the S256 of PKCE's verifier."""
    scopes = [*SCOPES, *(["offline_access"] if meta.gives_refresh else [])]
    query = {
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "response_type": "code",
        "scope": " ".join(scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        **({"login_hint": hint} if hint else {}),
    }
    joint = "&" if "?" in meta.authorization_endpoint else "?"
    return f"{meta.authorization_endpoint}{joint}{urlencode(query, quote_via=quote)}"


def exchange_code(client: Client, meta: Metadata, *, code: str, verifier: str, redirect_uri: str) -> Tokens:
    """Exchange a code for tokens. Raises SsoRefused, SsoAway, SsoMisconfigured."""
    said = _tokens(
        client,
        meta,
        {
            "grant_type": "authorization_code",
            "code": code,
            "code_verifier": verifier,
            "redirect_uri": redirect_uri,
        },
    )
    if (problem := said.get("error")) is not None:
        raise _error_of(problem)
    id_token, renewal = said.get("id_token"), said.get("refresh_token")
    if not isinstance(id_token, str):
        raise SsoMisconfigured("the provider sent no ID token")
    return Tokens(id_token, renewal if isinstance(renewal, str) else "")


def ask_again(client: Client, meta: Metadata, *, refresh_token: str, subject: str) -> str:
    """Ask whether the provider still vouches for a person. Returns the refresh token to use next.

    Raises NoLonger; SsoAway and SsoMisconfigured if it gives no answer.
    """
    said = _tokens(client, meta, {"grant_type": "refresh_token", "refresh_token": refresh_token})
    if said.get("error") == "invalid_grant":
        raise NoLonger
    if (problem := said.get("error")) is not None:
        raise _error_of(problem)
    if isinstance(id_token := said.get("id_token"), str):
        claims = claims_of(client, meta, id_token, nonce=None)
        if claims["sub"] != subject:
            raise NoLonger
    renewal = said.get("refresh_token")
    return renewal if isinstance(renewal, str) and renewal else refresh_token


def claims_of(client: Client, meta: Metadata, token: str, *, nonce: str | None) -> dict[str, Any]:
    """Return the claims of an ID token that this provider issued for this client and this sign-in, and that has not
    expired.

    `nonce` is None for a token that came without a browser. Raises SsoRefused, SsoAway.
    """
    if len(token) > _MAX_TOKEN_CHARS or not token.isascii():
        raise SsoRefused("the provider's answer is not valid")
    try:
        header = jwt.get_unverified_header(token)
        # Before the key is fetched: an unsigned token must not make us fetch any.
        if header.get("alg") not in {name for names in _ALGORITHMS.values() for name in names}:
            raise jwt.InvalidAlgorithmError("not an algorithm with a public key")
        key = _key_of(meta, token, header)
        claims: dict[str, Any] = jwt.decode(
            token,
            key.public,
            algorithms=key.algorithms(),
            audience=client.client_id,
            issuer=meta.issuer,
            leeway=_LEEWAY_S,
            options={"require": ["iss", "aud", "sub", "exp", "iat"]},
        )
    except (jwt.PyJWTError, RecursionError, ValueError, TypeError) as error:
        log.warning("sso.token_refused", issuer=meta.issuer, reason=type(error).__name__)
        raise SsoRefused("the provider's answer is not valid") from None
    _check_more(client, meta, claims, nonce)
    return claims


def _check_more(client: Client, meta: Metadata, claims: Mapping[str, Any], nonce: str | None) -> None:
    audience, party = claims["aud"], claims.get("azp")
    is_ours = (
        party == client.client_id if party is not None else isinstance(audience, str) or len(audience) == 1
    )
    said = claims.get("nonce")
    is_asked = nonce is None or (
        isinstance(said, str) and hmac.compare_digest(said.encode("utf-8", "surrogatepass"), nonce.encode())
    )
    subject = claims["sub"]
    if not (
        is_ours
        and is_asked
        and isinstance(subject, str)
        and 0 < len(subject) <= 255
        and subject.isprintable()
    ):
        reason = "azp" if not is_ours else "nonce" if not is_asked else "sub"
        log.warning("sso.token_refused", issuer=meta.issuer, reason=reason)
        raise SsoRefused("the provider's answer is not valid")


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────


def _tokens(client: Client, meta: Metadata, form: dict[str, str]) -> dict[str, Any]:
    headers = {}
    if meta.takes_basic:
        pair = f"{quote_plus(client.client_id)}:{quote_plus(client.secret)}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    else:
        form = {**form, "client_id": client.client_id, "client_secret": client.secret}
    answer = _ask("POST", meta.token_endpoint, data=form, headers=headers)
    said = _json(answer)
    if said is None:
        raise SsoAway
    if answer.status >= 400:
        return {"error": said.get("error", "unknown")}
    return said


def _error_of(problem: object) -> Exception:
    word = problem if isinstance(problem, str) and _ERROR_CODE.fullmatch(problem) else "unknown"
    match word:
        case "invalid_grant" | "access_denied":
            return SsoRefused("the provider does not accept this sign-in: begin again")
        case "temporarily_unavailable" | "server_error" | "slow_down":
            return SsoAway()
    return SsoMisconfigured(Text("the provider refuses this server's requests ({reason})", reason=word))


def _ask(method: str, url: str, **more: Any) -> public_http.Response:
    try:
        answer = public_http.request(
            method, url, allowed=_networks(), max_bytes=_MAX_BYTES, total_s=_TOTAL_S, **more
        )
    except public_http.AddressRefused as error:
        log.warning("sso.address_refused", reason=str(error))
        raise SsoMisconfigured(
            "an address of the provider cannot be used: it must be public, and begin with https"
        ) from None
    except public_http.NotReached as error:
        log.warning("sso.not_reached", reason=str(error))
        raise SsoAway from None
    if is_transient(answer.status):
        log.warning("sso.not_reached", reason=str(answer.status))
        raise SsoAway
    return answer


def _json(answer: public_http.Response) -> dict[str, Any] | None:
    try:
        return answer.json()
    except ValueError:
        return None


def _networks() -> tuple[public_http.Network, ...]:
    return public_http.networks_of(settings.SSO_NETWORKS)
