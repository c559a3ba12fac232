"""Signals that accounts send to other apps."""

from django.dispatch import Signal

# In the transaction that closes an account of which a worker deletes the rows, while its key exists (`user_id`):
# whatever works for it is to stop.
closing = Signal()
