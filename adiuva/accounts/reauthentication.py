"""Re-authentication within the request for an action that cannot be undone. A stolen token alone is not enough."""

from __future__ import annotations

from adiuva.accounts import passkeys
from adiuva.accounts.models import User
from adiuva.accounts.passkeys import Assertion
from adiuva.core.errors import Forbidden

PURPOSE = "confirm"


class ConfirmationRequired(Forbidden):
    code = "confirmation_required"


def require(*, user: User, password: str = "", passkey: Assertion | None = None) -> None:
    """Raise ConfirmationRequired unless the password is right, or the passkey answers a challenge to confirm."""
    if passkey:
        if not passkeys.accepts(passkey, purpose=PURPOSE, user=user):
            raise ConfirmationRequired("this passkey was not accepted", fields={"passkey": ["Not accepted."]})
    elif not password:
        raise ConfirmationRequired("this needs your password, or a passkey, in the same request")
    elif not user.check_password(password):
        raise ConfirmationRequired(
            "the password is wrong",
            fields={"password": ["This is not the password of the account."]},
        )
