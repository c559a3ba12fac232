"""Keys and tokens that somebody has packed by mistake. Everybody who downloads the plugin would have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from adiuva.core.errors import Text
from billing.marketplace.checks.text_files import line_of, text_of
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import Manifest
from billing.marketplace.package import PackageFile

CHECK: Final = "secrets"
# Few rules that are hardly ever wrong, by the prefixes that their makers document.
_SECRETS: Final = {
    "private key": r"-----BEGIN (?:[A-Z]+ ){0,2}PRIVATE KEY-----",
    "AWS": r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
    "GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255})\b",
    "GitLab": r"\bglpat-[A-Za-z0-9_-]{20,100}\b",
    "Google": r"\bAIza[A-Za-z0-9_-]{35}\b|\bGOCSPX-[A-Za-z0-9_-]{20,60}\b|\bya29\.[A-Za-z0-9_-]{30,300}",
    "npm": r"\bnpm_[A-Za-z0-9]{36}\b|_authToken\s*=\s*[A-Za-z0-9_-]{16,200}",
    "OpenVSX or Azure DevOps": r"\bovsxp?_[A-Za-z0-9-]{30,80}\b|\bovsxat_[A-Za-z0-9-]{30,80}\b",
    "PyPI": r"\bpypi-AgEI[A-Za-z0-9_-]{50,300}\b",
    "Slack": r"\bxox[abeprs]-[A-Za-z0-9-]{20,300}|hooks\.slack\.com/services/T[A-Z0-9]{6,14}/B[A-Z0-9]{6,14}/",
    "Stripe": r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,255}\b|\bwhsec_[A-Za-z0-9+/=]{24,100}",
    "model provider": r"\bsk-(?:ant-|proj-|or-)?[A-Za-z0-9_-]{32,255}\b",
    "Discord or Telegram": r"\bdiscord(?:app)?\.com/api/webhooks/\d{15,22}/|\b\d{8,10}:AA[A-Za-z0-9_-]{33}\b",
    "address with a password": r"\b(?:https?|postgres(?:ql)?|mysql|mongodb(?:\+srv)?|redis|amqp|ftp)://[^\s/:@\"'<>]{1,64}:[^\s/:@\"'<>{}$]{3,128}@",
}
_ANY: Final = re.compile("|".join(f"(?P<k{at}>{pattern})" for at, pattern in enumerate(_SECRETS.values())))
_KINDS: Final = tuple(_SECRETS)


def look(_manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
    text = text_of(file) or file.content.decode("latin-1")
    for found in _ANY.finditer(text):
        assert found.lastgroup is not None
        kind = _KINDS[int(found.lastgroup[1:])]
        yield Finding(
            CHECK,
            Text("there is a secret in it ({kind})", kind=kind),
            file.path,
            line_of(text, found.start()),
        )
