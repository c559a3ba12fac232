"""Clients of Google's and Microsoft's sign-in: consent URL, tokens for a code, refreshed tokens, revocation.

All functions block. Secrets are sent in request bodies only, and appear in no error and no log.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlencode

import jwt
import structlog
from django.conf import settings

from adiuva.core.errors import AdiuvaError, Text
from adiuva.core.logging import log_failure
from integrations import egress
from integrations.errors import GrantRefused, ProviderNotConfigured, ProviderUnavailable
from integrations.models import Provider, Reason

log = structlog.get_logger(__name__)

# The scopes needed to read; a grant that lacks one of them is not usable.
SCOPES: Final = {
    Provider.GMAIL: ("https://www.googleapis.com/auth/gmail.readonly",),
    Provider.OUTLOOK: ("Mail.Read",),
    Provider.TEAMS: ("ChannelMessage.Read.All", "Channel.ReadBasic.All", "Team.ReadBasic.All"),
}
# Scopes that tell whose account it is.
_IDENTITY_SCOPES: Final = {
    Provider.GMAIL: ("openid", "email"),
    Provider.OUTLOOK: ("User.Read",),
    Provider.TEAMS: ("User.Read",),
}
# MSAL adds these to every request.
_MSAL_SCOPES: Final = ("openid", "profile", "offline_access")
# Lifetime of an access token if the provider does not name one, and the bounds of one that it names.
_DEFAULT_LIFETIME_S: Final = 3600
_MIN_LIFETIME_S: Final = 60
_MAX_LIFETIME_S: Final = 86_400
# MSAL wants to compare states. Ours was checked before, so it gets the same word twice.
_CHECKED_STATE: Final = "seen"
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True)
class Grant:
    """The grant of a provider. `account`: the address, empty after a refresh. `lifetime_s`: the access token's."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    lifetime_s: int
    scopes: tuple[str, ...]
    account: str = field(default="", repr=False)

    def missing(self, provider: str) -> list[str]:
        """Return the required scopes that were not granted. Microsoft names scopes with or without its host."""
        granted = {_short_scope(scope) for scope in self.scopes}
        return [scope for scope in SCOPES[Provider(provider)] if _short_scope(scope) not in granted]


def is_configured(provider: str) -> bool:
    kept = _registration(provider)
    return bool(kept["client_id"] and kept["client_secret"])


def authorization_url(provider: str, *, state: str, verifier: str, redirect_uri: str, hint: str = "") -> str:
    """Return the URL of the consent page. Raises ProviderNotConfigured.

    `verifier` is PKCE's (RFC 7636). Only its hash appears in the URL: as the challenge, and as the nonce that the ID
    token must contain. `hint`: the address of the account to choose.
    """
    if not is_configured(provider):
        raise ProviderNotConfigured(
            Text("this server is not registered for {provider}", provider=Provider(provider).label)
        )
    digest = hashlib.sha256(verifier.encode()).digest()
    scopes = SCOPES[Provider(provider)] + _IDENTITY_SCOPES[Provider(provider)]
    query = {
        "client_id": _registration(provider)["client_id"],
        "redirect_uri": redirect_uri,
        "response_type": "code",
        "state": state,
        "nonce": digest.hex(),
        "code_challenge": urlsafe_b64encode(digest).decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    if provider == Provider.GMAIL:
        # Ask for consent each time: Google gives a refresh token only after a consent.
        query |= {"scope": " ".join(scopes), "access_type": "offline", "prompt": "consent select_account"}
        base = settings.GOOGLE["auth_uri"]
    else:
        query |= {"scope": " ".join(scopes + _MSAL_SCOPES), "prompt": "select_account"}
        base = f"{settings.MICROSOFT['authority']}/{settings.MICROSOFT['tenant']}/oauth2/v2.0/authorize"
    if hint:
        query["login_hint"] = hint
    return f"{base}?{urlencode(query)}"


def exchange_code(provider: str, *, code: str, verifier: str, redirect_uri: str) -> Grant:
    """Return tokens for an authorization code. Raises GrantRefused, ProviderUnavailable or ProviderNotConfigured."""
    if provider == Provider.GMAIL:
        body = _google_tokens(
            "authorization_code", code=code, code_verifier=verifier, redirect_uri=redirect_uri
        )
    else:
        flow = {  # the form that MSAL's initiate_auth_code_flow returns
            "state": _CHECKED_STATE,
            "redirect_uri": redirect_uri,
            "scope": [*SCOPES[Provider(provider)], *_IDENTITY_SCOPES[Provider(provider)], *_MSAL_SCOPES],
            "code_verifier": verifier,
            "nonce": verifier,
        }
        body = _call_msal("acquire_token_by_auth_code_flow", flow, {"state": _CHECKED_STATE, "code": code})
    return _parse_grant(provider, body, verifier)


def refresh(provider: str, refresh_token: str) -> Grant:
    """Return new tokens for a refresh token. Raises GrantRefused, ProviderUnavailable or ProviderNotConfigured."""
    if provider == Provider.GMAIL:
        body = _google_tokens("refresh_token", refresh_token=refresh_token)
    else:
        scopes = [*SCOPES[Provider(provider)], *_IDENTITY_SCOPES[Provider(provider)]]
        body = _call_msal("acquire_token_by_refresh_token", refresh_token, scopes)
    return _parse_grant(provider, body)


def revoke(provider: str, token: str) -> bool:
    """Ask the provider to revoke a grant; return whether it is revoked. Raises ProviderUnavailable.

    Microsoft offers apps no way to revoke a grant.
    """
    if provider != Provider.GMAIL:
        return False
    answer = egress.request_json(provider, "POST", settings.GOOGLE["revoke_uri"], data={"token": token})
    # A token that is no longer valid has nothing left to revoke.
    return answer.status_code == 200 or answer.json().get("error") == "invalid_token"


# ── Google: three requests of plain OAuth 2 ─────────────────────────────────────────────────────────────


def _google_tokens(grant_type: str, **fields: str) -> dict[str, Any]:
    kept = settings.GOOGLE
    data = {
        "grant_type": grant_type,
        "client_id": kept["client_id"],
        "client_secret": kept["client_secret"],
        **fields,
    }
    return egress.request_json(Provider.GMAIL, "POST", kept["token_uri"], data=data).json()


# ── Microsoft: through MSAL ─────────────────────────────────────────────────────────────────────────────


def _call_msal(method: str, *args: Any) -> dict[str, Any]:
    kept = settings.MICROSOFT
    if not is_configured(Provider.OUTLOOK):
        raise ProviderNotConfigured(
            Text("this server is not registered for {provider}", provider="Microsoft")
        )
    try:
        app = _msal_application(kept["client_id"], kept["client_secret"], kept["authority"], kept["tenant"])
        found: dict[str, Any] = getattr(app, method)(*args)
    except AdiuvaError:
        raise
    except Exception as error:
        # For an unexpected answer MSAL raises any kind of error, with the answer in its message.
        log_failure("msal.failed", error, method=method)
        raise ProviderUnavailable("Microsoft's sign-in gave an unusable answer") from None
    return found


@lru_cache(maxsize=4)
def _msal_application(client_id: str, client_secret: str, authority: str, tenant: str) -> Any:
    """Return MSAL's application, one per process: it asks the authority once for its token endpoint."""
    import msal  # type: ignore[import-untyped]  # imported late: it is slow to load

    class NoTokenCache(msal.TokenCache):  # type: ignore[misc]
        """Stores nothing: tokens are kept sealed in the database and nowhere else."""

        def add(self, event: Any, now: Any = None) -> None:
            pass

    return msal.ConfidentialClientApplication(
        client_id,
        client_credential=client_secret,
        # MSAL insists on https; _ForMsal goes back to the configured scheme.
        authority=f"https://{authority.partition('://')[2]}/{tenant}",
        validate_authority=False,  # otherwise it asks another host whether this one is Microsoft's
        instance_discovery=False,
        http_client=_MsalHttpClient(authority),
        token_cache=NoTokenCache(),
    )


class _MsalHttpClient:
    """The HTTP client that MSAL uses: our egress rules, and plain HTTP where a loopback authority is configured."""

    def __init__(self, authority: str) -> None:
        self._plain = authority if authority.startswith("http://") else ""
        self._secure = f"https://{self._plain.removeprefix('http://')}"

    def get(self, url: str, params: Any = None, headers: Any = None, **_: Any) -> egress.IdentityResponse:
        return egress.request_json(
            Provider.OUTLOOK, "GET", self._address(url), params=params, headers=headers
        )

    def post(
        self, url: str, params: Any = None, data: Any = None, headers: Any = None, **_: Any
    ) -> egress.IdentityResponse:
        answer = egress.request_json(
            Provider.OUTLOOK, "POST", self._address(url), params=params, data=data, headers=headers
        )
        error = answer.json().get("error", "none")
        if not (isinstance(error, str) and _ERROR_CODE.fullmatch(error)):
            # MSAL would put it into the headers of its next requests, which would then fail.
            raise ProviderUnavailable("Microsoft's sign-in gave an unusable answer")
        return answer

    def close(self) -> None:
        pass

    def _address(self, url: str) -> str:
        if self._plain and url.startswith(f"{self._secure}/"):
            return self._plain + url.removeprefix(self._secure)
        return url


# ── Token answers ──────────────────────────────────────────────────────────────────────────────────────


def _parse_grant(provider: str, body: dict[str, Any], verifier: str = "") -> Grant:
    """Return the grant in a token endpoint's answer. With a verifier, the answer must also say whose account it is."""
    name = Provider(provider).label
    if "error" in body:
        raise _token_error(name, body["error"])
    access, renewal, scope = body.get("access_token"), body.get("refresh_token"), body.get("scope")
    if not (isinstance(access, str) and access) or not isinstance(renewal, str | None):
        raise ProviderUnavailable(Text("{name}'s sign-in answered without a token", name=name))
    return Grant(
        access,
        renewal or None,
        _lifetime_s(body.get("expires_in")),
        # If the scope is missing, the requested scopes were granted (RFC 6749, 5.1).
        tuple(scope.split()) if isinstance(scope, str) else SCOPES[Provider(provider)],
        _account_address(provider, body.get("id_token"), verifier) if verifier else "",
    )


def _account_address(provider: str, id_token: Any, verifier: str) -> str:
    """Return the address of the account in an ID token.

    The signature need not be checked: the token came from the provider itself over TLS (OpenID Connect Core, 3.1.3.7).
    Its audience and nonce are checked: it must be for this server and for this consent.
    """
    claims: dict[str, Any] = {}
    try:
        claims = jwt.decode(str(id_token), options={"verify_signature": False})
    except (jwt.InvalidTokenError, RecursionError, ValueError):
        pass
    mine = claims.get("aud") == _registration(provider)["client_id"]
    fresh = claims.get("nonce") == hashlib.sha256(verifier.encode()).hexdigest()
    names = ("email",) if provider == Provider.GMAIL else ("preferred_username", "email", "upn")
    address = next((claims[name] for name in names if isinstance(claims.get(name), str)), "").strip()
    if not (mine and fresh and 0 < len(address) <= 320 and address.isprintable()):
        raise ProviderUnavailable(
            Text("{provider}'s sign-in does not say whose account it is", provider=Provider(provider).label)
        )
    return address


def _token_error(name: str, error: object) -> AdiuvaError:
    word = error if isinstance(error, str) and _ERROR_CODE.fullmatch(error) else "unknown"
    match word:
        # The last two of these mean that an administrator of the user's organisation does not allow this app.
        case "invalid_grant" | "redirect_uri_mismatch" | "access_denied" | "admin_policy_enforced":
            return GrantRefused(Reason.REFUSED)
        case "interaction_required" | "consent_required" | "login_required":
            return GrantRefused(Reason.SIGN_IN)
        case "temporarily_unavailable" | "server_error" | "slow_down":
            return ProviderUnavailable(Text("{name}'s sign-in is unavailable at the moment", name=name))
    log.error("oauth.refused", provider=name, error=word)
    return ProviderNotConfigured(
        Text("{name}'s sign-in refuses this server's requests ({reason})", name=name, reason=word)
    )


def _lifetime_s(value: Any) -> int:
    """Return `expires_in` within bounds: a token that seems to expire at once would be refreshed for every request."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return _DEFAULT_LIFETIME_S
    return max(_MIN_LIFETIME_S, min(value, _MAX_LIFETIME_S))


def _short_scope(scope: str) -> str:
    return scope.rpartition("/")[2].lower()


def _registration(provider: str) -> dict[str, str]:
    return settings.GOOGLE if provider == Provider.GMAIL else settings.MICROSOFT
