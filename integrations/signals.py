"""What happens to connections, for the rooms above. Each is sent with `connection_id` and `user_id`.

A receiver runs in a transaction of its own, after the change was committed, in whatever thread brought it about:
it asks the database, and does the rest on commit. If it raises, `needs_reauth` is sent again by the sweep.
"""

from django.dispatch import Signal

# Once a loss, however many runs met it: pause what reads with the connection, tell the user.
needs_reauth = Signal()
# The user connected again what needed it.
reconnected = Signal()
