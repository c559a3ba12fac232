"""What happens to connections, for the rooms above. Each is sent with `connection_id` and `user_id`.

A receiver runs in a transaction of its own, after the change was committed, in whatever thread brought it about:
it asks the database, and does the rest on commit.
"""

from django.dispatch import Signal

# Once a loss, however many runs met it, and again by the sweep whenever a device of a user is here who was not told.
needs_reauth = Signal()
# The user connected again what needed it.
reconnected = Signal()
