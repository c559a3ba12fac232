"""E-mail addresses as they are stored, compared and looked up: one spelling for each mailbox."""

from __future__ import annotations

import idna

from adiuva.core.errors import Text

_MAX_CHARS = 254  # RFC 5321, 4.5.3.1.3, without the angle brackets


class AddressInvalid(ValueError):
    """Error for an address that no account can have. Its message is for the user, in English like an AdiuvaError's."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def normalize(address: str) -> str:
    """Return the address in lower case, with its domain in ASCII as IDNA writes it. Raises AddressInvalid.

    The part before the @ must be ASCII: letters such as the Kelvin sign or the dotless i look like ASCII letters, and
    become them when somebody else changes their case. A domain is mapped by UTS 46, so that every spelling of it gives
    the same text: Bücher.example, BÜCHER。example and xn--bcher-kva.example.
    """
    local, at, domain = address.strip().rpartition("@")
    if not at or not local or not domain:
        raise AddressInvalid("Enter a valid email address.")
    if not local.isascii():
        raise AddressInvalid("The part before the @ may hold only unaccented letters, digits and signs.")
    found = f"{local}@{_ascii_domain(domain)}".lower()
    if len(found) > _MAX_CHARS:
        raise AddressInvalid(Text("An address has at most {count} characters.", count=_MAX_CHARS))
    return found


def _ascii_domain(domain: str) -> str:
    if domain.isascii() and "xn--" not in domain.lower():
        return domain
    try:
        return idna.encode(domain, uts46=True, std3_rules=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise AddressInvalid("The part after the @ is not a domain name.") from None
