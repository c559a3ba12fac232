"""Errors of an organisation's sign-in, for people and programs."""

from __future__ import annotations

from adiuva.core.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable


class SsoRefused(Forbidden):
    """The organisation's sign-in, or its statement, does not open an account here."""

    code = "sso_refused"


class SsoMisconfigured(Invalid):
    """The owner's configuration does not lead to a sign-in that works."""

    code = "sso_misconfigured"


class SsoAway(Unavailable):
    code = "sso_away"

    def __init__(self) -> None:
        super().__init__("the sign-in of your organisation does not answer at the moment: try again later")


class SsoUnknown(NotFound):
    """Raised for every address that cannot sign in this way, for whatever reason."""

    code = "sso_unknown"

    def __init__(self) -> None:
        super().__init__("there is no single sign-on for this address")


class SsoExpired(Invalid):
    code = "sso_expired"

    def __init__(self) -> None:
        super().__init__("this sign-in was finished before, has expired, or was begun elsewhere: begin again")


class NoFreeSeat(Conflict):
    code = "no_free_seat"

    def __init__(self) -> None:
        super().__init__(
            "your organisation has no free seat here, so nothing was made: ask the owner of your team for one"
        )
