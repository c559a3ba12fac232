"""Signals that accounts send to other apps."""

from django.dispatch import Signal

# Sent with `user_id` in the transaction that closes an account whose rows a worker deletes, while its key exists:
# receivers stop whatever works for it.
closing = Signal()
